//! A certificate authority of the lab's own, and a server with a certificate of it.

use crate::server::Server;
use crate::world::Host;

/// A CA and a certificate of it for `addr`, written where the hosts see them.
pub fn test_ca(addr: &str) -> (String, String, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "lab CA");
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![addr.to_owned()]).unwrap();
    let issuer = rcgen::Issuer::new(ca, &ca_key);
    let cert = leaf.signed_by(&key, &issuer).unwrap();
    (ca_cert.pem(), cert.pem(), key.serialize_pem())
}

/// Starts a server on this machine with a certificate of a new CA; gives the CA's certificate too.
pub fn serve_with_ca(host: &Host) -> (Server, String) {
    let (ca, cert, key) = test_ca(&host.addr);
    std::fs::write(host.path("/etc/cert.pem"), cert).unwrap();
    std::fs::write(host.path("/etc/key.pem"), key).unwrap();
    let url = format!("https://{}", host.addr);
    let server =
        Server::start_with(host, &url, &["--tls-cert", "/etc/cert.pem", "--tls-key", "/etc/key.pem"]);
    (server, ca)
}
