//! How a request is read, and how its path is written.

use std::fmt::Write as _;

use serde::{Deserialize, de::DeserializeOwned};

use crate::{ApiError, console::Start};

/// What a read takes in its query.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadQuery {
    /// How long to wait for a change, in milliseconds.
    pub wait_ms: u64,
    /// Events: those after this number.
    pub after: Option<u64>,
    /// Log: from this position on.
    pub from: u64,
    /// Show what this node knew last rather than fail without a quorum.
    pub stale: bool,
}

/// Which part of a console a client begins with; without either, with what comes next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleQuery {
    /// So many bytes before its end.
    pub last: u64,
    /// At this place.
    pub at: Option<u64>,
}

impl ConsoleQuery {
    /// Where that is.
    #[must_use]
    pub fn start(&self) -> Start {
        self.at.map_or(Start::Last(self.last), Start::At)
    }
}

/// A JSON body. Empty stands for `{}`, so that verbs without options need no body.
///
/// # Errors
/// When it is not what this verb takes.
pub fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(text)
        .map_err(|error| ApiError::invalid(format!("the request's body is not what this needs: {error}")))
}

/// A name as one segment of a path: whatever the user typed must not become another path or a query.
#[must_use]
pub fn segment(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StopVm, TokenRequest};

    #[test]
    fn an_empty_body_is_an_empty_object() {
        assert_eq!(body::<StopVm>(b""), Ok(StopVm { force: false }));
        assert_eq!(body::<StopVm>(br#"{"force":true}"#), Ok(StopVm { force: true }));
        let missing = body::<TokenRequest>(b"").unwrap_err();
        assert!(missing.message.contains("node"), "{missing}");
        let unknown = body::<StopVm>(br#"{"farce":true}"#).unwrap_err();
        assert!(unknown.message.contains("farce"), "{unknown}");
    }

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("web-1_a"), "web-1_a");
        assert_eq!(segment("../v1?x=ü"), "%2E%2E%2Fv1%3Fx%3D%C3%BC");
    }
}
