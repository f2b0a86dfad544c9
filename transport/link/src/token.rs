//! Join tokens, with the cryptography and the randomness that [`pollux_wire::token`] does without.

use std::{
    fmt,
    net::SocketAddr,
    ops::Deref,
    str::FromStr,
    time::{Duration, SystemTime},
};

use pollux_wire::{id::ClusterId, token};

pub use token::TokenError;

use crate::certificate::{Fingerprint, sha256};

/// A join token. Whoever holds it can join once, under the name it carries, until it expires.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(
    /// What it carries.
    pub token::Token,
);

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
        let token = token::Token {
            cluster,
            ca_fingerprint: ca_fingerprint.0,
            node_name: node_name.to_owned(),
            addresses,
            secret: rand::random(),
            expires_unix_s: expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs(),
        };
        token.check()?;
        Ok(Self(token))
    }

    /// By which authority the cluster is recognised.
    #[must_use]
    pub fn authority(&self) -> Fingerprint {
        Fingerprint(self.ca_fingerprint)
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
}

impl Deref for Token {
    type Target = token::Token;

    fn deref(&self) -> &token::Token {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write(sha256).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        token::Token::read(text, sha256).map(Self)
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
        token.0.secret = [9; 32];
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
    fn a_mistyped_token_is_refused() {
        let line = token().to_string();
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
