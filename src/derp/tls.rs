//! Whom a DERP client trusts (dataplane.md 1.1, TLS verification).
//!
//! Ordinary roots for the host name, for another name (`CertName`), or exactly one certificate
//! (`sha256-raw:<hex>`); or anybody, for tests. Handshake signatures are checked in every case, so
//! a pinned certificate also proves its private key.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::keys::ct_eq;
use crate::wire::DerpNode;

/// Prefix of a `CertName` that pins a certificate.
const PIN_PREFIX: &str = "sha256-raw:";

/// Why no TLS configuration could be made for a node.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The pin is not 64 hex digits.
    #[error("CertName of DERP node {0:?} is not sha256-raw: and 64 hex digits; fix the DERP map")]
    Pin(String),
    /// A name is neither a DNS name nor an address.
    #[error("{0:?} is no name a certificate can be checked for; fix the DERP map")]
    Name(String),
    /// The roots are unusable.
    #[error("the trusted roots are unusable: {0}")]
    Roots(String),
    /// TLS itself refused.
    #[error("TLS setup: {0}")]
    Tls(#[from] Error),
}

#[derive(Debug)]
enum Trust {
    Roots { verifier: Arc<WebPkiServerVerifier>, instead: Option<ServerName<'static>> },
    Pin([u8; 32]),
    Anybody,
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

/// TLS 1.2 and 1.3 without ALPN towards `node`, and the name to say in the handshake.
///
/// # Errors
/// When the node's names or the roots are unusable.
pub fn client_config(
    node: &DerpNode,
    roots: &Arc<rustls::RootCertStore>,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsSetupError> {
    let provider = Arc::new(ring::default_provider());
    let trust = trust_of(node, roots, &provider)?;
    let verifier = Verifier { trust, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((Arc::new(config), name(node.host())?))
}

fn name(text: &str) -> Result<ServerName<'static>, TlsSetupError> {
    ServerName::try_from(text.to_owned()).map_err(|_| TlsSetupError::Name(text.to_owned()))
}

fn trust_of(
    node: &DerpNode,
    roots: &Arc<rustls::RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Trust, TlsSetupError> {
    if let Some(digits) = node.cert_name.strip_prefix(PIN_PREFIX) {
        let mut pin = [0; 32];
        return hex::decode_to_slice(digits, &mut pin)
            .map(|()| Trust::Pin(pin))
            .map_err(|_| TlsSetupError::Pin(node.name.clone()));
    }
    // A CertName is checked even for test nodes, as the official client does.
    if node.insecure_for_tests && node.cert_name.is_empty() {
        return Ok(Trust::Anybody);
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|e| TlsSetupError::Roots(e.to_string()))?;
    let instead = match node.cert_name.as_str() {
        "" => None,
        other => Some(name(other)?),
    };
    Ok(Trust::Roots { verifier, instead })
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Roots { verifier, instead } => verifier.verify_server_cert(
                end_entity,
                intermediates,
                instead.as_ref().unwrap_or(server_name),
                ocsp_response,
                now,
            ),
            Trust::Pin(pin) => {
                let digest = ::ring::digest::digest(&::ring::digest::SHA256, end_entity);
                if ct_eq(digest.as_ref(), pin) {
                    Ok(ServerCertVerified::assertion())
                } else {
                    Err(CertificateError::ApplicationVerificationFailure.into())
                }
            }
            Trust::Anybody => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
