//! A node's key pair. Ed25519: small, quick to make, and its signatures have one length and no randomness, which keeps a
//! simulated handshake the same from run to run.

use std::{fmt, sync::Arc};

use rcgen::{CertificateParams, CertificateSigningRequestParams, DnType, KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The key pair could not be made, read or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key pair is unusable: {0}")]
pub struct KeyError(pub(crate) String);

impl From<rcgen::Error> for KeyError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

/// A private key with its public half.
#[derive(Clone)]
pub struct NodeKey(pub(crate) Arc<KeyPair>);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

impl NodeKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(Arc::new(KeyPair::generate_for(&rcgen::PKCS_ED25519)?)))
    }

    pub(crate) fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        Ok(Self(Arc::new(KeyPair::try_from(der)?)))
    }

    /// A signing request (PKCS #10 in DER): the public key, and the proof that the private one is at hand.
    ///
    /// # Errors
    /// When signing fails.
    pub fn signing_request(&self, name: &str) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(params.serialize_request(&*self.0)?.der().to_vec())
    }

    /// The raw public key.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.0.public_key_raw()
    }

    pub(crate) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

/// The raw public key in a signing request (PKCS #10 in DER), as [`NodeKey::public`] gives it.
///
/// # Errors
/// When it is no request, or not signed with the key it carries.
pub fn request_key(signing_request: &[u8]) -> Result<Vec<u8>, KeyError> {
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(signing_request))?;
    Ok(request.public_key.der_bytes().to_vec())
}
