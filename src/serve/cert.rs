//! Certificates: our own self-signed one, files given by the admin, and DERP's meta certificate.
//!
//! Stock clients that lost their stream come back by TLS on 443 with any certificate, and dial relays
//! by TLS only; the DERP map pins a self-signed one (control.md 3.1, 13.1). The first pinning clients
//! (1.82, 1.84) refuse a second certificate, so a pinned listener presents exactly one and the meta
//! certificate (dataplane.md 1.1) goes only beside CA-issued ones.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::public;
use super::state_dir::StateDir;
use crate::clock::Now;
use crate::config::Config;
use crate::keys::DerpPublic;

/// Where the self-signed certificate and its key are kept, in one file so that they never differ.
const FILE: &str = "tls-self-signed.pem";

/// What the TLS listener presents.
#[derive(Clone)]
pub(super) struct Identity {
    /// Chain and key.
    pub certified: Arc<CertifiedKey>,
    /// SHA-256 of the leaf, lower hex; the pin when self-signed.
    pub fingerprint: String,
    /// Made by us: clients know it only by its pin.
    pub self_signed: bool,
}

/// The SHA-256 of a certificate, lower hex.
#[must_use]
pub(super) fn fingerprint(der: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, der))
}

/// A self-signed certificate is replaced this long before its end.
const MARGIN: chrono::Duration = chrono::Duration::days(30);
/// How long it lives.
const LIFE_DAYS: i64 = 3652;

/// What the TLS listener shall present by this configuration: the files given, else our own.
///
/// # Errors
/// When a file cannot be used; nothing has changed then.
pub(super) fn load(
    config: &Config,
    host: &str,
    state: &StateDir,
    relay: &DerpPublic,
    now: Now,
) -> anyhow::Result<Identity> {
    match &config.tls_files {
        Some((cert, key)) => from_files(cert, key, relay, now),
        None => self_signed(state, &names(host, &public_ips()), now),
    }
}

fn public_ips() -> Vec<IpAddr> {
    let all = public::interfaces().into_iter().map(|(_, ip)| ip);
    all.filter(|ip| public::reach(*ip) == public::Reach::Public).take(8).collect()
}

/// Why a kept certificate will not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unfit {
    /// The URL's host is not in it.
    Host,
    /// It ends soon, has ended, or does not say when.
    Old,
}

/// Whether the kept certificate still serves. Further addresses of the machine come and go; only the
/// host that clients dial matters, for a new certificate is a new pin.
fn fit(kept: &str, host: &str, now: DateTime<Utc>) -> Result<(), Unfit> {
    let line = |start: &str| kept.lines().take(2).find_map(|l| l.strip_prefix(start));
    if !line("names: ").is_some_and(|l| l.split(' ').any(|n| n == host)) {
        return Err(Unfit::Host);
    }
    let until = line("until: ").and_then(|l| DateTime::parse_from_rfc3339(l).ok());
    if until.is_some_and(|until| now + MARGIN < until) { Ok(()) } else { Err(Unfit::Old) }
}

/// The kept self-signed certificate, or a new one when there is none or it no longer fits.
///
/// # Errors
/// When the state directory fails or the kept file is damaged.
fn self_signed(state: &StateDir, names: &[String], now: Now) -> anyhow::Result<Identity> {
    if let Some(kept) = state.read(FILE)? {
        match fit(&kept, names.first().map_or("", String::as_str), now.wall) {
            Ok(()) => {
                return identity(kept.as_bytes(), kept.as_bytes(), true).with_context(|| {
                    format!(
                        "{} is damaged; remove it and a new one is made (clients learn the new pin by themselves)",
                        state.path().join(FILE).display()
                    )
                });
            }
            Err(why) => {
                let why = match why {
                    Unfit::Host => "the host of the URL changed",
                    Unfit::Old => "the old one ends",
                };
                tracing::info!("making a new self-signed certificate: {why}");
            }
        }
    }
    let pem = make_self_signed(names, now)?;
    let until = (now.wall + chrono::Duration::days(LIFE_DAYS)).to_rfc3339();
    let text = zeroize::Zeroizing::new(format!("names: {}\nuntil: {until}\n{}", names.join(" "), *pem));
    state.write(FILE, &text)?;
    identity(pem.as_bytes(), pem.as_bytes(), true)
}

fn make_self_signed(names: &[String], now: Now) -> anyhow::Result<zeroize::Zeroizing<String>> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "tsd self-signed");
    // A day of slack for clients whose clock is behind.
    set_validity(&mut params, now, -1, LIFE_DAYS);
    let cert = params.self_signed(&key)?;
    let key_pem = zeroize::Zeroizing::new(key.serialize_pem());
    Ok(zeroize::Zeroizing::new(format!("{}{}", cert.pem(), *key_pem)))
}

/// Sets the days between which a certificate is valid, counted from now.
fn set_validity(params: &mut CertificateParams, now: Now, from: i64, until: i64) {
    use chrono::Datelike as _;
    let small = |n: u32| u8::try_from(n).unwrap_or(1);
    let day = |days: i64| {
        let at = now.wall + chrono::Duration::days(days);
        rcgen::date_time_ymd(at.year(), small(at.month()), small(at.day()))
    };
    params.not_before = day(from);
    params.not_after = day(until);
}

/// Certificate files as given by the admin, with the relay's meta certificate behind them.
///
/// # Errors
/// When a file cannot be read or the key does not belong to the certificate.
fn from_files(cert: &Path, key: &Path, relay: &DerpPublic, now: Now) -> anyhow::Result<Identity> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (cert_pem, key_pem) = (read(cert)?, zeroize::Zeroizing::new(read(key)?));
    let mut identity = identity(&cert_pem, &key_pem, false).with_context(|| {
        format!("{} and {} are no usable pair of PEM certificate and key", cert.display(), key.display())
    })?;
    let mut certified = (*identity.certified).clone();
    certified.cert.push(meta(relay, now)?);
    identity.certified = Arc::new(certified);
    Ok(identity)
}

fn identity(cert_pem: &[u8], key_pem: &[u8], self_signed: bool) -> anyhow::Result<Identity> {
    let chain = CertificateDer::pem_slice_iter(cert_pem).collect::<Result<Vec<_>, _>>()?;
    let Some(leaf) = chain.first() else {
        bail!("there is no certificate in it");
    };
    let fingerprint = fingerprint(leaf);
    let key = PrivateKeyDer::from_pem_slice(key_pem)?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match()?;
    Ok(Identity { certified: Arc::new(certified), fingerprint, self_signed })
}

/// How long the meta certificate is valid, back and ahead.
const META_DAYS: i64 = 30;

/// DERP's meta certificate: tells clients the relay's key so that they skip a round trip.
fn meta(relay: &DerpPublic, now: Now) -> anyhow::Result<CertificateDer<'static>> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("derpkey{}", relay.untyped_hex()));
    params.serial_number = Some(rcgen::SerialNumber::from(2_u64));
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    // Made anew at each look of a running server (`limits::RENEWAL`), so it never comes near its end.
    set_validity(&mut params, now, -META_DAYS, META_DAYS);
    Ok(params.self_signed(&key)?.der().clone())
}

/// Presents one identity, whatever name is asked for: stock clients dial addresses too.
#[derive(Debug)]
pub(super) struct OneCertificate(ArcSwap<CertifiedKey>);

impl OneCertificate {
    /// Starts with `certified`.
    #[must_use]
    pub(super) fn new(certified: Arc<CertifiedKey>) -> Self {
        Self(ArcSwap::new(certified))
    }

    /// Presents another from the next handshake on.
    pub(super) fn replace(&self, certified: Arc<CertifiedKey>) {
        self.0.store(certified);
    }
}

impl rustls::server::ResolvesServerCert for OneCertificate {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The TLS side of a listener. Clients of both protocols offer no ALPN; browsers get HTTP/1.1.
///
/// # Errors
/// When the crypto provider lacks what TLS needs.
pub(super) fn server_config(resolver: Arc<OneCertificate>) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What the self-signed certificate stands for: the URL's host first, then our public addresses.
#[must_use]
fn names(host: &str, more: &[IpAddr]) -> Vec<String> {
    let mut out = vec![host.to_owned()];
    for ip in more.iter().map(ToString::to_string) {
        if !out.contains(&ip) {
            out.push(ip);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::ServerName;

    use super::*;

    fn covers(identity: &Identity, name: &str) -> bool {
        let leaf = identity.certified.cert.first().unwrap();
        let parsed = rustls::server::ParsedCertificate::try_from(leaf).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        rustls::client::verify_server_name(&parsed, &name).is_ok()
    }

    #[test]
    fn the_self_signed_certificate_is_one_kept_and_names_the_host() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("s")).unwrap();
        let list = names("203.0.113.9", &["2001:db8::1".parse().unwrap(), "203.0.113.9".parse().unwrap()]);
        assert_eq!(list.len(), 2);
        let first = self_signed(&state, &list, Now::read()).unwrap();
        assert_eq!(first.certified.cert.len(), 1);
        assert_eq!(first.fingerprint, fingerprint(first.certified.cert.first().unwrap()));
        assert_eq!(first.certified.key.algorithm(), rustls::SignatureAlgorithm::ECDSA);
        // The P-256 curve's object identifier (RFC 5480 2.1.1.1) stands in the public key.
        let leaf = first.certified.cert.first().unwrap();
        let p256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        assert!(leaf.windows(p256.len()).any(|w| w == p256));
        assert!(covers(&first, "203.0.113.9") && covers(&first, "2001:db8::1"));
        assert!(!covers(&first, "203.0.113.10"));

        let again = self_signed(&state, &names("203.0.113.9", &[]), Now::read()).unwrap();
        assert_eq!(again.fingerprint, first.fingerprint);
        let other = self_signed(&state, &names("vpn.example.com", &[]), Now::read()).unwrap();
        assert_ne!(other.fingerprint, first.fingerprint);
        assert!(covers(&other, "vpn.example.com"));
    }

    #[test]
    fn a_certificate_near_its_end_is_replaced_and_a_fresh_one_kept() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("s")).unwrap();
        let (list, now) = (names("203.0.113.9", &[]), Now::read());
        let days = |n: u64| now.after(std::time::Duration::from_secs(n * 86_400));
        let first = self_signed(&state, &list, now).unwrap();
        assert_eq!(self_signed(&state, &list, days(3600)).unwrap().fingerprint, first.fingerprint);
        let second = self_signed(&state, &list, days(3640)).unwrap();
        assert_ne!(second.fingerprint, first.fingerprint);
        assert_eq!(self_signed(&state, &list, days(3641)).unwrap().fingerprint, second.fingerprint);
        let kept = state.read(FILE).unwrap().unwrap();
        assert_eq!(fit(&kept, "203.0.113.9", now.wall), Ok(()));
        assert_eq!(fit(&kept, "203.0.113.1", now.wall), Err(Unfit::Host));
        assert_eq!(fit("names: a\nuntil: never\n", "a", now.wall), Err(Unfit::Old));
        assert_eq!(fit("names: a\n", "a", now.wall), Err(Unfit::Old));
    }

    #[test]
    fn a_look_comes_often_enough_for_the_meta_certificate() {
        let margin = u64::try_from(META_DAYS).unwrap() * 86_400 / 10;
        assert!(crate::serve::limits::RENEWAL.as_secs() < margin);
    }

    #[test]
    fn another_certificate_is_presented_without_a_restart() {
        let make = || {
            let pem = make_self_signed(&names("a.example", &[]), Now::read()).unwrap();
            identity(pem.as_bytes(), pem.as_bytes(), true).unwrap()
        };
        let (first, second) = (make(), make());
        let shown = OneCertificate::new(first.certified);
        shown.replace(Arc::clone(&second.certified));
        assert_eq!(fingerprint(shown.0.load().cert.first().unwrap()), second.fingerprint);
    }

    #[test]
    fn files_get_the_meta_certificate_behind_them() {
        let temp = tempfile::tempdir().unwrap();
        let pem = make_self_signed(&names("a.example", &[]), Now::read()).unwrap();
        let path = temp.path().join("both.pem");
        std::fs::write(&path, pem.as_bytes()).unwrap();
        let relay = DerpPublic::from_bytes([7; 32]);
        let identity = from_files(&path, &path, &relay, Now::read()).unwrap();
        let [leaf, meta] = identity.certified.cert.as_slice() else { panic!("two certificates") };
        assert_eq!(identity.fingerprint, fingerprint(leaf));
        let cn = format!("derpkey{}", relay.untyped_hex());
        assert!(meta.windows(cn.len()).any(|w| w == cn.as_bytes()));
        assert!(!identity.self_signed);
        let other = make_self_signed(&names("a.example", &[]), Now::read()).unwrap();
        let key = temp.path().join("key.pem");
        std::fs::write(&key, other.as_bytes()).unwrap();
        assert!(from_files(&path, &key, &relay, Now::read()).is_err());
    }
}
