//! What a node's certificate says: `pollux://CLUSTER/ROLE/NODE` as a subject alternative name, `node-N.CLUSTER.pollux` for
//! the server name check, and the node's name as common name. Also the fingerprint by which a token names an authority.

use std::fmt;

use pollux_wire::id::{ClusterId, NodeId};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::role::Role;

/// A certificate that does not say what a node's certificate must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509 in DER.
    #[error("it is not an X.509 certificate")]
    Unreadable,
    /// Without an identity, or with more than one.
    #[error("it carries no single pollux://CLUSTER/ROLE/NODE identity")]
    NoIdentity,
    /// Without a common name.
    #[error("it carries no node name")]
    NoName,
}

/// What a node's certificate says about the node. True only if the certificate was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) cluster: ClusterId,
    pub(crate) role: Role,
    pub(crate) node: NodeId,
    pub(crate) name: String,
}

impl Claims {
    pub(crate) fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Unreadable)?;
        let names = certificate.subject_alternative_name().ok().flatten().ok_or(CertificateError::NoIdentity)?.value;
        let mut uris = names.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(CertificateError::NoIdentity) };
        let (cluster, role, node) = parse_uri(uri).ok_or(CertificateError::NoIdentity)?;
        let name = certificate
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .ok_or(CertificateError::NoName)?
            .to_owned();
        Ok(Self { cluster, role, node, name })
    }

    pub(crate) fn uri(&self) -> String {
        format!("pollux://{}/{}/{}", self.cluster, self.role, self.node.0)
    }
}

fn parse_uri(uri: &str) -> Option<(ClusterId, Role, NodeId)> {
    let mut parts = uri.strip_prefix("pollux://")?.split('/');
    let (cluster, role, node) = (parts.next()?, parts.next()?, parts.next()?);
    let id = NodeId(node.parse().ok()?);
    // The number as it would be written, so that one identity has one spelling.
    if parts.next().is_some() || id.0 == 0 || id.0.to_string() != node {
        return None;
    }
    Some((cluster.parse().ok()?, Role::parse(role)?, id))
}

/// The name under which a node's certificate is checked.
pub(crate) fn server_name(cluster: ClusterId, node: NodeId) -> String {
    format!("node-{}.{cluster}.pollux", node.0)
}

/// SHA-256 of something in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of these bytes.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(sha256(der))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_spelling() {
        let cluster = "000102030405060708090a0b0c0d0e0f";
        let good = format!("pollux://{cluster}/witness/17");
        let (id, role, node) = parse_uri(&good).unwrap();
        assert_eq!((id.to_string().as_str(), role, node), (cluster, Role::Witness, NodeId(17)));
        for bad in [
            format!("pollux://{cluster}/witness/017"),
            format!("pollux://{cluster}/witness/0"),
            format!("pollux://{cluster}/witness/+17"),
            format!("pollux://{cluster}/king/17"),
            format!("pollux://{cluster}/witness/17/"),
            format!("https://{cluster}/witness/17"),
            "pollux://short/member/1".to_owned(),
        ] {
            assert_eq!(parse_uri(&bad), None, "{bad}");
        }
    }
}
