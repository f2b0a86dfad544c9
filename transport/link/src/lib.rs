//! How nodes talk: QUIC with mutual TLS from the cluster's own authority. The only package that names quinn.
//!
//! An [`Endpoint`] is one UDP socket with everything on it: the connections this node opened, those its peers opened, and
//! the tasks that serve them. The daemon binds one at its start and closes it at its end. Into it go calls and sessions for
//! peers; out of it come, through the [`Service`], calls, sessions and joins from peers. Each peer is known by its verified
//! certificate; each call has a deadline, each message a limit, and each refusal is an error there and a count here.
//!
//! ```text
//!   Endpoint ── call ────> dial: one connection per peer and class ──> frame ──> peer
//!       │      └ open ──┘   (consensus and bulk apart, opened when needed)
//!       └── accept ──> handshake: TLS, then version, cluster, identity ──> serve: one task per stream ──> Service
//! ```
//!
//! A node that has no certificate yet uses [`join()`] with a [`Token`].

mod admit;
mod authority;
mod call;
mod certificate;
mod cid;
mod congestion;
mod counters;
mod dial;
mod endpoint;
mod error;
mod exchange;
mod explain;
mod greet;
mod identity;
mod join;
mod keep;
mod key;
mod role;
mod serve;
mod service;
mod session;
pub mod simulation;
mod socket;
mod stream;
mod streams;
mod tls;
mod token;
mod transport;

pub use authority::{AUTHORITY_FILE, Authority, AuthorityError};
pub use certificate::{CertificateError, Fingerprint};
pub use counters::Counters;
pub use dial::{PathStats, To};
pub use endpoint::{Binding, Endpoint, Limits};
pub use error::{BindError, CallError, DialError, NotSent, OpenError, Unknown};
pub use identity::{IDENTITY_FILE, Identity, IdentityError};
pub use join::{JoinError, Joined, join};
pub use key::{KeyError, NodeKey, request_key};
pub use pollux_wire::join::{JoinReply, JoinRequest};
pub use role::{Role, Roles};
pub use service::{Class, Fault, Peer, Service};

pub use stream::{RecvStream, SendStream, StreamError};
pub use tls::TlsError;
pub use token::{Token, TokenError};
pub use transport::{
    BULK_DIAL_MAX, BULK_IDLE, BULK_KEEP_ALIVE, CONSENSUS_DIAL_MAX, CONSENSUS_IDLE, CONSENSUS_KEEP_ALIVE,
};
