//! A join token: what a new node needs to find the cluster, to recognise it, and to be recognised by it. One line, meant to
//! be pasted: `pollux1.` and base64url of the encoded fields with four bytes of checksum.

use std::{
    fmt,
    net::SocketAddr,
    str::FromStr,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use pollux_wire::{
    codec,
    id::ClusterId,
    limits::{self, Limit},
};
use serde::{Deserialize, Serialize};

use crate::{
    authority::is_node_name,
    certificate::{Fingerprint, sha256},
};

const PREFIX: &str = "pollux1.";
const CHECKSUM_BYTES: usize = 4;

/// What a token carries. Whoever holds it can join once, under this name, until it expires.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Which cluster.
    pub cluster: ClusterId,
    /// By which authority the cluster is recognised.
    pub ca_fingerprint: Fingerprint,
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
    /// A new token with a new secret.
    ///
    /// # Errors
    /// When the name cannot be a node's, or there are no addresses or too many.
    pub fn create(
        cluster: ClusterId,
        ca_fingerprint: Fingerprint,
        node_name: &str,
        addresses: Vec<SocketAddr>,
        expires: SystemTime,
    ) -> Result<Self, TokenError> {
        let token = Self {
            cluster,
            ca_fingerprint,
            node_name: node_name.to_owned(),
            addresses,
            secret: rand::random(),
            expires_unix_s: expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs(),
        };
        token.check()?;
        Ok(token)
    }

    /// What the cluster stores instead of the secret: SHA-256 of it.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        Self::hash(&self.secret)
    }

    /// What the cluster compares a joiner's secret with.
    #[must_use]
    pub fn hash(secret: &[u8; 32]) -> [u8; 32] {
        sha256(secret)
    }

    fn check(&self) -> Result<(), TokenError> {
        if !is_node_name(&self.node_name) {
            return Err(TokenError::Name);
        }
        if !(1..=limits::TOKEN_ADDRESSES_MAX).contains(&self.addresses.len()) {
            return Err(TokenError::Addresses);
        }
        Ok(())
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

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = codec::encode(self, Limit::Small).map_err(|_| fmt::Error)?;
        let checksum = sha256(&bytes);
        bytes.extend_from_slice(&checksum[..CHECKSUM_BYTES]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let mut token = Token::create(
            ClusterId([5; 16]),
            Fingerprint([6; 32]),
            "leda",
            vec!["10.0.0.1:7000".parse().unwrap(), "[fd00::1]:7000".parse().unwrap()],
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        )
        .unwrap();
        token.secret = [9; 32];
        token
    }

    #[test]
    fn a_token_survives_being_pasted() {
        let line = token().to_string();
        assert!(!line.contains(char::is_whitespace));
        assert_eq!(format!("  {line}\n").parse::<Token>(), Ok(token()));
    }

    #[test]
    fn a_token_looks_as_it_did() {
        assert_eq!(
            token().to_string(),
            "pollux1.BQUFBQUFBQUFBQUFBQUFBQYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBAAAAAAAAABsZWRhAgAAAAAAAAAAAAAACgAAAVgbAQAAAP0AAAAAAAAAAAAAAAAAAAFYGwkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJANJJawAAAABPOGiC"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let line = token().to_string();
        assert_eq!("hunter2".parse::<Token>(), Err(TokenError::NotAToken));
        assert_eq!(line.replacen("pollux1", "pollux2", 1).parse::<Token>(), Err(TokenError::Newer));
        assert_eq!(format!("{} {}", &line[..20], &line[20..]).parse::<Token>(), Err(TokenError::Character));
        for cut in 1..line.len() - PREFIX.len() {
            assert_eq!(line[..line.len() - cut].parse::<Token>(), Err(TokenError::Checksum), "{cut} cut off");
        }
        let mistyped = line.replacen('C', "D", 1);
        assert_ne!(mistyped, line);
        assert_eq!(mistyped.parse::<Token>(), Err(TokenError::Checksum));
    }

    #[test]
    fn the_secret_stays_out_of_logs() {
        assert!(!format!("{:?}", token()).contains('9'));
    }

    #[test]
    fn a_token_names_somebody_and_somewhere() {
        let expires = SystemTime::now();
        let create =
            |name, addresses| Token::create(ClusterId([1; 16]), Fingerprint([1; 32]), name, addresses, expires);
        assert_eq!(create("leda", vec![]), Err(TokenError::Addresses));
        assert_eq!(create("leda!", vec!["10.0.0.1:1".parse().unwrap()]), Err(TokenError::Name));
    }
}
