//! A join token: what a new node needs to find the cluster, to recognise it, and to be recognised by it. One line, meant to
//! be pasted: `pollux1.` and base64url of the encoded fields with four bytes of checksum.
//!
//! The checksum begins the SHA-256 of the fields. There is no cryptography in this package: whoever reads or writes a token
//! brings it along.

use alloc::{format, string::String, vec::Vec};
use core::{fmt, net::SocketAddr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, EncodeError},
    id::{ClusterId, is_node_name},
    limits::{self, Limit},
};

const PREFIX: &str = "pollux1.";
const CHECKSUM_BYTES: usize = 4;

/// SHA-256 of some bytes.
pub type Sha256 = fn(&[u8]) -> [u8; 32];

/// What a token carries. Whoever holds it can join once, under this name, until it expires.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Which cluster.
    pub cluster: ClusterId,
    /// By which authority the cluster is recognised: SHA-256 of its certificate.
    pub ca_fingerprint: [u8; 32],
    /// For which node.
    pub node_name: String,
    /// Where members listen; tried in this order.
    pub addresses: Vec<SocketAddr>,
    /// What the cluster recognises the joiner by.
    pub secret: [u8; 32],
    /// The cluster refuses it from this second on, counted from the Unix epoch.
    pub expires_unix_s: u64,
}

/// Text that is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not even the beginning of one.
    #[error("this is not a join token: a token starts with \"pollux1.\"")]
    NotAToken,
    /// A token of a later format.
    #[error("this token is of a newer format than this build of pollux reads: upgrade this node")]
    Newer,
    /// A character that cannot be part of one.
    #[error("the token has a character that does not belong there; was it broken over two lines?")]
    Character,
    /// The checksum does not match.
    #[error("the token is incomplete or mistyped: its checksum does not match")]
    Checksum,
    /// The checksum matches, the fields do not make sense.
    #[error("the token is malformed")]
    Malformed,
    /// The name cannot be a node's.
    #[error("the token's node name cannot name a node")]
    Name,
    /// No address, or too many.
    #[error("a token names 1 to {max} addresses", max = limits::TOKEN_ADDRESSES_MAX)]
    Addresses,
}

impl Token {
    /// Whether it names somebody and somewhere.
    ///
    /// # Errors
    /// When the name cannot be a node's, or there are no addresses or too many.
    pub fn check(&self) -> Result<(), TokenError> {
        if !is_node_name(&self.node_name) {
            return Err(TokenError::Name);
        }
        if !(1..=limits::TOKEN_ADDRESSES_MAX).contains(&self.addresses.len()) {
            return Err(TokenError::Addresses);
        }
        Ok(())
    }

    /// As a line of text.
    ///
    /// # Errors
    /// When it has more to say than a small message may.
    pub fn write(&self, sha256: Sha256) -> Result<String, EncodeError> {
        let mut bytes = codec::encode(self, Limit::Small)?;
        let checksum = sha256(&bytes);
        bytes.extend_from_slice(&checksum[..CHECKSUM_BYTES]);
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Out of text, as it was pasted.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str, sha256: Sha256) -> Result<Self, TokenError> {
        let text = text.trim();
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            let version = text.strip_prefix("pollux").and_then(|rest| rest.split_once('.')).map(|(digits, _)| digits);
            let newer = version.and_then(|digits| digits.parse::<u32>().ok()).is_some_and(|version| version > 1);
            return Err(if newer { TokenError::Newer } else { TokenError::NotAToken });
        };
        // A cut token may end in an impossible length of base64; that too is a matter of the checksum.
        let alphabet = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !encoded.bytes().all(alphabet) {
            return Err(TokenError::Character);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Checksum)?;
        let (fields, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Checksum)?;
        if sha256(fields)[..CHECKSUM_BYTES] != checksum[..] {
            return Err(TokenError::Checksum);
        }
        let token: Self = codec::decode(fields, Limit::Small).map_err(|_| TokenError::Malformed)?;
        token.check()?;
        Ok(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret: this ends up in logs.
        f.debug_struct("Token")
            .field("cluster", &self.cluster)
            .field("node_name", &self.node_name)
            .field("addresses", &self.addresses)
            .field("expires_unix_s", &self.expires_unix_s)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString, vec};

    use super::*;

    /// Stands in for SHA-256: bytes that differ where its bytes do.
    fn digest(bytes: &[u8]) -> [u8; 32] {
        let sum = bytes.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&sum.to_le_bytes());
        digest
    }

    fn token() -> Token {
        Token {
            cluster: ClusterId([5; 16]),
            ca_fingerprint: [6; 32],
            node_name: "leda".to_string(),
            addresses: vec!["10.0.0.1:7000".parse().unwrap(), "[fd00::1]:7000".parse().unwrap()],
            secret: [9; 32],
            expires_unix_s: 1_800_000_000,
        }
    }

    #[test]
    fn a_token_survives_being_pasted() {
        let line = token().write(digest).unwrap();
        assert!(!line.contains(char::is_whitespace));
        assert_eq!(Token::read(&format!("  {line}\n"), digest), Ok(token()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let line = token().write(digest).unwrap();
        let read = |text: &str| Token::read(text, digest);
        assert_eq!(read("hunter2"), Err(TokenError::NotAToken));
        assert_eq!(read(&line.replacen("pollux1", "pollux2", 1)), Err(TokenError::Newer));
        assert_eq!(read(&format!("{} {}", &line[..20], &line[20..])), Err(TokenError::Character));
        for cut in 1..line.len() - PREFIX.len() {
            assert_eq!(read(&line[..line.len() - cut]), Err(TokenError::Checksum), "{cut} cut off");
        }
        let mistyped = line.replacen('C', "D", 1);
        assert_ne!(mistyped, line);
        assert_eq!(read(&mistyped), Err(TokenError::Checksum));
    }

    #[test]
    fn whoever_wrote_it_it_names_somebody_and_somewhere() {
        let read = |token: Token| Token::read(&token.write(digest).unwrap(), digest);
        assert_eq!(read(Token { node_name: "leda!".to_string(), ..token() }), Err(TokenError::Name));
        assert_eq!(read(Token { addresses: vec![], ..token() }), Err(TokenError::Addresses));
        let many = vec![token().addresses[0]; limits::TOKEN_ADDRESSES_MAX + 1];
        assert_eq!(read(Token { addresses: many, ..token() }), Err(TokenError::Addresses));
        let nonsense = [1, 2, 3];
        let bytes = [&nonsense[..], &digest(&nonsense)[..CHECKSUM_BYTES]].concat();
        let line = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(Token::read(&line, digest), Err(TokenError::Malformed));
    }

    #[test]
    fn the_secret_stays_out_of_logs() {
        assert!(!format!("{:?}", token()).contains('9'));
    }
}
