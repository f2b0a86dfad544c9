//! Why there is no session with a replica.

use pollux_wire::id::{Generation, Owner, ReplicaId};
use serde::{Deserialize, Serialize};

/// See the module's text. In words that pass from node to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A newer generation was here: the right to write went elsewhere, for good (DESIGN, rule 4).
    #[error("{replica} has seen {seen} of its volume, and {generation} is older: the right to write went elsewhere")]
    Fenced {
        /// Which replica.
        replica: ReplicaId,
        /// The session's generation.
        generation: Generation,
        /// The highest that the replica has seen.
        seen: Generation,
    },
    /// The same generation was here, in the hands of somebody else: which cannot be.
    #[error("{generation} of the volume of {replica} belongs to {owner}, which had a session before")]
    NotTheOwner {
        /// Which replica.
        replica: ReplicaId,
        /// The generation.
        generation: Generation,
        /// Whose it is.
        owner: Owner,
    },
    /// The same owner has begun a newer session.
    #[error("a newer session with {replica} has begun")]
    Overtaken {
        /// Which replica.
        replica: ReplicaId,
    },
    /// The node of the replica does not let the session in.
    #[error("{why}")]
    NotAdmitted {
        /// Why not.
        why: String,
    },
    /// It cannot be used again: it is to be replaced by a copy of another one.
    #[error("{replica} is out of use: {why}")]
    OutOfUse {
        /// Which replica.
        replica: ReplicaId,
        /// Why.
        why: String,
    },
    /// It cannot be opened now.
    #[error("{replica} cannot be opened: {why}")]
    Unavailable {
        /// Which replica.
        replica: ReplicaId,
        /// Why.
        why: String,
    },
}

/// An error and what caused it, in one line.
pub(crate) fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
