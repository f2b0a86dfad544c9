//! The cluster's own certificate authority. Made once by the node that founds the cluster; whoever holds it can admit
//! nodes. It signs nothing but node certificates.
//!
//! Certificates here do not expire: a cluster that stops because a date passed, or because a host booted with a wrong
//! clock, would be a fault of our making. A node is removed by the cluster state, which every node checks on every call
//! ([`crate::Service::admits`]).

use std::{
    io,
    path::{Path, PathBuf},
};

use pollux_wire::id::{ClusterId, NodeId, is_node_name};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    certificate::{Claims, Fingerprint, server_name},
    identity::{Identity, IdentityError},
    keep::{self, Unread},
    key::{KeyError, NodeKey},
    role::Role,
};

/// The file's name in a node's state directory.
pub const AUTHORITY_FILE: &str = "authority.pem";

/// The authority cannot be made, read or written, or refuses to sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// There is none.
    #[error("this node does not hold the cluster's authority ({} does not exist)", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot access the authority in {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the owner can read the private key.
    #[error("{} is open to others (mode bits {bits:03o}): set mode 0600; if it was read, found a new cluster", .path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// The offending bits.
        bits: u32,
    },
    /// There is a different one already.
    #[error("{} holds another authority", .0.display())]
    Exists(PathBuf),
    /// The file is not what was written.
    #[error("the authority is damaged: {0}")]
    Damaged(&'static str),
    /// The name cannot be a node's.
    #[error("{0:?} cannot name a node: a name has 1 to 63 letters, digits and hyphens, no hyphen first or last")]
    Name(String),
    /// Node 0 is no node.
    #[error("0 is no node")]
    NoNode,
    /// What the node sent is not a signing request, or not signed with the key it carries.
    #[error("the signing request of {name} is unusable: {why}")]
    Request {
        /// Which node.
        name: String,
        /// Why.
        why: String,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The issued certificate does not make an identity.
    #[error("the issued certificate is unusable")]
    Identity(#[from] IdentityError),
}

/// A certificate authority with its private key.
#[derive(Debug)]
pub struct Authority {
    cluster: ClusterId,
    key: NodeKey,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// A new authority for a new cluster.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn create(cluster: ClusterId) -> Result<Self, AuthorityError> {
        let key = NodeKey::generate()?;
        let certificate = ca_params(cluster).self_signed(&*key.0).map_err(KeyError::from)?;
        Ok(Self { cluster, key, certificate: certificate.der().clone() })
    }

    /// Reads the authority from a state directory.
    ///
    /// # Errors
    /// When there is none, when it is damaged, or when others can read the key.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        let path = directory.join(AUTHORITY_FILE);
        let read = keep::read_private(&path).map_err(|unread| match unread {
            Unread::Io(source) => AuthorityError::Io { path: path.clone(), source },
            Unread::Exposed(bits) => AuthorityError::Exposed { path: path.clone(), bits },
        })?;
        let text = read.ok_or(AuthorityError::Missing(path))?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| AuthorityError::Damaged("no private key"))?;
        let certificate =
            CertificateDer::from_pem_slice(&text).map_err(|_| AuthorityError::Damaged("no certificate"))?;
        let key = NodeKey::from_der(&key)?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|_| AuthorityError::Damaged("not a certificate"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public() {
            return Err(AuthorityError::Damaged("the certificate is for another key"));
        }
        let cluster = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .and_then(|name| name.strip_prefix(CA_NAME))
            .and_then(|id| id.parse().ok())
            .ok_or(AuthorityError::Damaged("the certificate names no cluster"))?;
        Ok(Self { cluster, key, certificate })
    }

    /// Writes the authority into a state directory, with mode 0600. Writing the same one again is allowed.
    ///
    /// # Errors
    /// When it cannot be written, or when there is another one.
    pub fn save(&self, directory: &Path) -> Result<(), AuthorityError> {
        let path = directory.join(AUTHORITY_FILE);
        match Self::load(directory) {
            Ok(there) if there.certificate == self.certificate => return Ok(()),
            Err(AuthorityError::Missing(_)) => {}
            Ok(_) | Err(_) => return Err(AuthorityError::Exists(path)),
        }
        let text = [
            keep::pem("PRIVATE KEY", self.key.private_der().secret_der()),
            keep::pem("CERTIFICATE", &self.certificate),
        ]
        .concat();
        keep::write(&path, &text).map_err(|source| AuthorityError::Io { path, source })
    }

    /// Issues a certificate for the key in a signing request (PKCS #10 in DER). Of the request only the key counts; what
    /// the certificate says is decided here.
    ///
    /// # Errors
    /// When the request is not signed with the key it carries, or the name cannot be a node's.
    pub fn issue(
        &self,
        node: NodeId,
        name: &str,
        role: Role,
        signing_request: &[u8],
    ) -> Result<Vec<u8>, AuthorityError> {
        let unusable = |why: String| AuthorityError::Request { name: name.to_owned(), why };
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(signing_request))
            .map_err(|error| unusable(error.to_string()))?;
        let params = self.node_params(node, name, role)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key.0).map_err(KeyError::from)?;
        let certificate =
            params.signed_by(&request.public_key, &issuer).map_err(|error| unusable(error.to_string()))?;
        Ok(certificate.der().to_vec())
    }

    /// A whole identity with a new key: the founder's own, and those of tests.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn identity(&self, node: NodeId, name: &str, role: Role) -> Result<Identity, AuthorityError> {
        let key = NodeKey::generate()?;
        let certificate = self.issue(node, name, role, &key.signing_request(name)?)?;
        Ok(Identity::new(certificate, self.certificate.to_vec(), key)?)
    }

    /// Which cluster it is the authority of.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate, X.509 in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// What a token names it by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    fn node_params(&self, node: NodeId, name: &str, role: Role) -> Result<CertificateParams, AuthorityError> {
        if !is_node_name(name) {
            return Err(AuthorityError::Name(name.to_owned()));
        }
        if node.0 == 0 {
            return Err(AuthorityError::NoNode);
        }
        let claims = Claims { cluster: self.cluster, role, node, name: name.to_owned() };
        let text = |text: String| text.as_str().try_into().map_err(KeyError::from);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names =
            vec![SanType::URI(text(claims.uri())?), SanType::DnsName(text(server_name(self.cluster, node))?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        always_valid(&mut params);
        Ok(params)
    }
}

/// Each authority has a name of its own, so that "another cluster" and "a forged signature" are different errors.
const CA_NAME: &str = "pollux cluster ";

fn ca_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{CA_NAME}{cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    always_valid(&mut params);
    params
}

fn always_valid(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    // RFC 5280, 4.1.2.5: the last moment of 9999 stands for "no well-defined expiration date".
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f; // Positive, as RFC 5280, 4.1.2.2 asks.
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn authority() -> Authority {
        Authority::create(ClusterId([3; 16])).unwrap()
    }

    #[test]
    fn an_identity_survives_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let identity = authority().identity(NodeId(7), "helios", Role::Witness).unwrap();

        identity.save(directory.path()).unwrap();
        let mode = fs::metadata(directory.path().join("identity.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let loaded = Identity::load(directory.path()).unwrap();
        assert_eq!(
            (loaded.cluster(), loaded.node(), loaded.name(), loaded.role()),
            (ClusterId([3; 16]), NodeId(7), "helios", Role::Witness)
        );
        assert_eq!(loaded.certificate(), identity.certificate());
        identity.save(directory.path()).unwrap();
    }

    #[test]
    fn an_identity_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority();
        authority.identity(NodeId(1), "a", Role::Member).unwrap().save(directory.path()).unwrap();
        let other = authority.identity(NodeId(2), "b", Role::Member).unwrap();
        assert!(matches!(other.save(directory.path()), Err(IdentityError::Exists(_))));
        assert_eq!(Identity::load(directory.path()).unwrap().node(), NodeId(1));
    }

    #[test]
    fn a_key_that_was_made_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("joining.pem");
        let made = NodeKey::kept(&path).unwrap();
        assert_eq!(NodeKey::kept(&path).unwrap().public(), made.public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(matches!(NodeKey::kept(&path), Err(IdentityError::Exposed { bits: 0o004, .. })));
    }

    #[test]
    fn an_exposed_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        authority().identity(NodeId(1), "a", Role::Member).unwrap().save(directory.path()).unwrap();
        let path = directory.path().join("identity.pem");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(directory.path()), Err(IdentityError::Exposed { bits: 0o040, .. })));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (ours, theirs) = (authority(), authority());
        let key = NodeKey::generate().unwrap();
        let certificate = ours.issue(NodeId(1), "a", Role::Member, &key.signing_request("a").unwrap()).unwrap();
        let other_key = NodeKey::generate().unwrap();
        assert!(Identity::new(certificate.clone(), ours.certificate().to_vec(), key.clone()).is_ok());
        assert!(Identity::new(certificate.clone(), theirs.certificate().to_vec(), key).is_err());
        assert!(Identity::new(certificate, ours.certificate().to_vec(), other_key).is_err());
    }

    #[test]
    fn an_authority_survives_the_disk_and_still_signs() {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority();
        authority.save(directory.path()).unwrap();
        let loaded = Authority::load(directory.path()).unwrap();
        assert_eq!((loaded.cluster(), loaded.fingerprint()), (authority.cluster(), authority.fingerprint()));
        assert_eq!(loaded.identity(NodeId(2), "b", Role::Member).unwrap().ca(), authority.certificate());
    }

    #[test]
    fn a_request_without_its_private_key_is_refused() {
        let authority = authority();
        let mut request = NodeKey::generate().unwrap().signing_request("a").unwrap();
        let last = request.len() - 1;
        request[last] ^= 1;
        let refused = authority.issue(NodeId(1), "a", Role::Member, &request);
        assert!(matches!(refused, Err(AuthorityError::Request { .. })), "{refused:?}");
    }

    #[test]
    fn names_are_dns_labels() {
        let request = NodeKey::generate().unwrap().signing_request("x").unwrap();
        for bad in ["", "-a", "a-", "a.b", "a b", "ä", &"x".repeat(64)] {
            let refused = authority().issue(NodeId(1), bad, Role::Member, &request);
            assert!(matches!(refused, Err(AuthorityError::Name(_))), "{bad}");
        }
    }
}
