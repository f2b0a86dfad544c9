//! Who this node is: its key, its certificate and the authority it trusts, in one file, so that they cannot be half
//! replaced. Minted once (by the founder or by a join), then read at every start.

use std::{io, path::Path, path::PathBuf};

use pollux_wire::id::{ClusterId, NodeId};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    certificate::{CertificateError, Claims, Fingerprint},
    keep::{self, Unread},
    key::{KeyError, NodeKey},
    role::Role,
};

/// The file's name in a node's state directory.
pub const IDENTITY_FILE: &str = "identity.pem";

/// The identity cannot be used, read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error("this node has no identity yet ({} does not exist): found a cluster or join one", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot access the identity in {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the owner can read the private key.
    #[error("{} is open to others (mode bits {bits:03o}): the key may be known; set mode 0600 and consider a new identity", .path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// The offending bits.
        bits: u32,
    },
    /// There is a different one already; an identity is never replaced.
    #[error("{} holds another identity; a wiped node joins as a new node, so remove the whole state directory first", .0.display())]
    Exists(PathBuf),
    /// The file is not what was written.
    #[error("the identity is damaged: {0}")]
    Damaged(&'static str),
    /// The certificate is not a node's.
    #[error("the identity's certificate is unusable")]
    Certificate(#[from] CertificateError),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl NodeKey {
    /// The key kept in `path`, with mode 0600; a new one is made and written there if there is none. A node that asks to
    /// join keeps its key from before the first question: should the answer be lost, the cluster knows it again by that.
    ///
    /// # Errors
    /// When the file cannot be read or written, holds no key, or is open to others.
    pub fn kept(path: &Path) -> Result<Self, IdentityError> {
        match keep::read_private(path).map_err(|unread| IdentityError::unread(path, unread))? {
            None => {
                let key = Self::generate()?;
                keep::write(path, &keep::pem("PRIVATE KEY", key.private_der().secret_der()))
                    .map_err(|source| IdentityError::Io { path: path.to_owned(), source })?;
                Ok(key)
            }
            Some(text) => {
                let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| IdentityError::Damaged("no private key"))?;
                Ok(Self::from_der(&key)?)
            }
        }
    }
}

impl IdentityError {
    fn unread(path: &Path, unread: Unread) -> Self {
        let path = path.to_owned();
        match unread {
            Unread::Io(source) => Self::Io { path, source },
            Unread::Exposed(bits) => Self::Exposed { path, bits },
        }
    }
}

/// A node's identity. Its parts have been checked against each other.
#[derive(Debug, Clone)]
pub struct Identity {
    cluster: ClusterId,
    node: NodeId,
    name: String,
    role: Role,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    key: NodeKey,
}

impl Identity {
    /// Puts an identity together.
    ///
    /// # Errors
    /// When the certificate is not a node's, was not issued by this authority or not for this key.
    pub fn new(certificate: Vec<u8>, ca: Vec<u8>, key: NodeKey) -> Result<Self, IdentityError> {
        let claims = Claims::read(&certificate)?;
        let (_, own) = X509Certificate::from_der(&certificate).map_err(|_| CertificateError::Unreadable)?;
        let (_, authority) = X509Certificate::from_der(&ca).map_err(|_| CertificateError::Unreadable)?;
        if own.public_key().subject_public_key.data.as_ref() != key.public() {
            return Err(IdentityError::Damaged("the certificate is for another key"));
        }
        if own.verify_signature(Some(authority.public_key())).is_err() {
            return Err(IdentityError::Damaged("the certificate was issued by another authority"));
        }
        let Claims { cluster, role, node, name } = claims;
        Ok(Self { cluster, node, name, role, certificate: certificate.into(), ca: ca.into(), key })
    }

    /// Reads the identity from a state directory.
    ///
    /// # Errors
    /// When there is none, when it is damaged, or when others can read the key.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(IDENTITY_FILE);
        let read = keep::read_private(&path).map_err(|unread| IdentityError::unread(&path, unread))?;
        let text = read.ok_or(IdentityError::Missing(path))?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| IdentityError::Damaged("no private key"))?;
        let mut certificates = CertificateDer::pem_slice_iter(&text);
        let (Some(Ok(own)), Some(Ok(ca)), None) = (certificates.next(), certificates.next(), certificates.next())
        else {
            return Err(IdentityError::Damaged("not exactly two certificates"));
        };
        Self::new(own.to_vec(), ca.to_vec(), NodeKey::from_der(&key)?)
    }

    /// Writes the identity into a state directory, with mode 0600. Writing the same one again is allowed.
    ///
    /// # Errors
    /// When it cannot be written, or when there is another one.
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join(IDENTITY_FILE);
        match Self::load(directory) {
            Ok(there) if there.certificate == self.certificate => return Ok(()),
            Err(IdentityError::Missing(_)) => {}
            Ok(_) | Err(_) => return Err(IdentityError::Exists(path)),
        }
        let text = [
            keep::pem("PRIVATE KEY", self.key.private_der().secret_der()),
            keep::pem("CERTIFICATE", &self.certificate),
            keep::pem("CERTIFICATE", &self.ca),
        ]
        .concat();
        keep::write(&path, &text).map_err(|source| IdentityError::Io { path, source })
    }

    /// Which cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Which node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What the node is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the node may do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The node's certificate, X.509 in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The node's raw public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.key.public()
    }

    /// The cluster authority's certificate, X.509 in DER.
    #[must_use]
    pub fn ca(&self) -> &[u8] {
        &self.ca
    }

    /// What a token names the authority by.
    #[must_use]
    pub fn ca_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.ca)
    }

    /// Own certificate first, then the authority's: a joiner needs both to check its token.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.ca.clone()]
    }

    pub(crate) fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(crate) fn key(&self) -> &NodeKey {
        &self.key
    }
}
