//! What a node may be in the cluster. The role is part of the certificate, so that nobody takes one by claiming it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What one node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs VMs and votes.
    Member,
    /// Votes, and runs nothing.
    Witness,
}

impl Role {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Witness => "witness",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "member" => Some(Self::Member),
            "witness" => Some(Self::Witness),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which roles may do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    /// Nobody: there is no such method or session.
    None,
    /// Members only.
    Members,
    /// Members and witnesses.
    All,
}

impl Roles {
    /// Whether a node of this role is among them.
    #[must_use]
    pub const fn contain(self, role: Role) -> bool {
        match (self, role) {
            (Self::None, _) | (Self::Members, Role::Witness) => false,
            (Self::Members, Role::Member) | (Self::All, _) => true,
        }
    }
}
