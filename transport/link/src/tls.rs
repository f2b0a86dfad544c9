//! TLS 1.3 in both directions, with the cluster's own authority as the only root. No session tickets and no early data: every
//! connection proves its identity anew, and nothing can be replayed.
//!
//! The verifiers are rustls's WebPki ones. Around them stand thin recorders, because what comes out of a failed handshake is
//! an alert number, and an operator needs to know *whose* certificate it was.

use std::sync::{Arc, Mutex};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError as RustlsCertificate, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{
    certificate::{Claims, Fingerprint},
    counters::Counting,
    identity::Identity,
};

/// The application protocol of nodes that have a certificate.
pub(crate) const ALPN_NODE: &[u8] = b"pollux";
/// The application protocol of nodes that want one.
pub(crate) const ALPN_JOIN: &[u8] = b"pollux-join";

/// What TLS needs cannot be put together.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(String);

impl TlsError {
    fn from(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Why the other side's certificate was refused, and who it claims to be.
#[derive(Debug, Clone)]
pub(crate) struct Rejected {
    pub(crate) error: Error,
    pub(crate) claims: Option<Claims>,
}

/// Where a verifier leaves what it rejected, for the one dial it serves.
pub(crate) type Record = Arc<Mutex<Option<Rejected>>>;

/// The TLS side of an endpoint.
pub(crate) struct Tls {
    client: rustls::ClientConfig,
    verifier: Arc<WebPkiServerVerifier>,
    server: Arc<rustls::ServerConfig>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity, counting: Arc<Counting>) -> Result<Self, TlsError> {
        let provider = provider();
        let mut roots = RootCertStore::empty();
        roots.add(identity.ca_der().clone()).map_err(TlsError::from)?;
        let roots = Arc::new(roots);

        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(TlsError::from)?;
        let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::from)?
            .with_webpki_verifier(verifier.clone())
            .with_client_auth_cert(identity.chain(), identity.key().private_der())
            .map_err(TlsError::from)?;
        client.alpn_protocols = vec![ALPN_NODE.to_vec()];
        client.resumption = Resumption::disabled();

        // Joiners have no certificate; whether one is needed depends on the protocol, which is known after the handshake.
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::from)?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::from)?
            .with_client_cert_verifier(Arc::new(CountingVerifier { inner, counting }))
            .with_single_cert(identity.chain(), identity.key().private_der())
            .map_err(TlsError::from)?;
        server.alpn_protocols = vec![ALPN_NODE.to_vec(), ALPN_JOIN.to_vec()];
        server.send_tls13_tickets = 0;

        Ok(Self { client, verifier, server: Arc::new(server) })
    }

    /// What one dial needs; what it rejects is left in `record`.
    pub(crate) fn client(&self, record: Record) -> Result<QuicClientConfig, TlsError> {
        let mut config = self.client.clone();
        let verifier = RecordingVerifier { inner: self.verifier.clone(), record };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        QuicClientConfig::try_from(config).map_err(TlsError::from)
    }

    pub(crate) fn server(&self) -> Result<QuicServerConfig, TlsError> {
        QuicServerConfig::try_from(self.server.clone()).map_err(TlsError::from)
    }
}

/// What a join needs: no certificate of its own, and a server whose authority is the one with this fingerprint.
pub(crate) fn joining(authority: Fingerprint, record: Record) -> Result<QuicClientConfig, TlsError> {
    let provider = provider();
    let verifier = PinnedVerifier { authority, provider: provider.clone(), record };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::from)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(TlsError::from)
}

/// AES-128-GCM first: the fastest where the processor has AES, and 128 bits are enough. The order is the only difference
/// from the provider's own.
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        ..aws_lc_rs::default_provider()
    })
}

fn leave(record: &Record, error: &Error, certificate: &CertificateDer<'_>) {
    let rejected = Rejected { error: error.clone(), claims: Claims::read(certificate).ok() };
    *record.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(rejected);
}

/// The WebPki verifier, which also leaves a record of what it rejected.
#[derive(Debug)]
struct RecordingVerifier {
    inner: Arc<WebPkiServerVerifier>,
    record: Record,
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .inspect_err(|error| leave(&self.record, error, end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts a server whose chain ends in the one authority that the token names. The name does not matter: a joiner does not
/// know which node answers at an address, only which cluster must.
#[derive(Debug)]
struct PinnedVerifier {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
    record: Record,
}

impl PinnedVerifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let authority = others
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.authority)
            .ok_or(Error::InvalidCertificate(RustlsCertificate::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, &[], now, algorithms)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
            .inspect_err(|error| leave(&self.record, error, end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The WebPki verifier for those who dial us, which also counts and reports what it rejected.
#[derive(Debug)]
struct CountingVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    counting: Arc<Counting>,
}

impl ClientCertVerifier for CountingVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hint: a client of another cluster would then hide its certificate instead of being told.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.inner.verify_client_cert(end_entity, intermediates, now).inspect_err(|error| {
            let claims = Claims::read(end_entity).ok();
            if is_foreign(error) {
                self.counting.wrong_cluster.add();
            } else {
                self.counting.handshakes_failed.add();
            }
            tracing::warn!(?claims, %error, "refused a peer's certificate");
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whether a certificate was rejected because another authority issued it.
pub(crate) fn is_foreign(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(RustlsCertificate::UnknownIssuer))
}

/// Whether a certificate was rejected because it is for another name.
pub(crate) fn is_other_name(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            RustlsCertificate::NotValidForName | RustlsCertificate::NotValidForNameContext { .. }
        )
    )
}
