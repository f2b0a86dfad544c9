//! Joining, at the side that wants in. The order is what matters: first the server proves, with a chain that ends in the
//! authority the token names, that it belongs to the cluster; then the secret is sent; then what comes back is checked
//! before it is believed.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use pollux_wire::{
    VERSION, codec, fault,
    frame::{Opening, StreamKind},
    handshake::{Hello, Purpose},
    id::NodeId,
    join::{JoinReply, JoinRequest},
    limits::{JOIN_BYTES_MAX, Limit},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::{
    certificate::Fingerprint,
    congestion::Closing,
    dial::verified_claims,
    endpoint::TrackedRuntime,
    error::DialError,
    exchange::{self, Answer, AnswerError},
    explain::{Destination, explain, explain_greeting},
    greet,
    identity::{Identity, IdentityError},
    key::{KeyError, NodeKey},
    role::Role,
    service::{Class, Fault},
    stream::{RecvStream, SendStream},
    tls::{self, Record},
    token::Token,
    transport,
};

/// The least time one address of the token is given before the next is tried.
const ATTEMPT_MIN: Duration = Duration::from_secs(2);

/// A new member of the cluster.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Who this node is now. Not yet on disk.
    pub identity: Identity,
    /// The nodes that were there before it.
    pub members: Vec<(NodeId, SocketAddr)>,
}

/// The node was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is for another name.
    #[error("the token was issued for a node named {expected:?}, not {found:?}: ask for one with the right name")]
    WrongName {
        /// The token's name.
        expected: String,
        /// The name this node wants.
        found: String,
    },
    /// No address of the token led to the cluster. The secret was not sent.
    #[error("no address in the token leads to the cluster; the last error was: {last}")]
    Unreachable {
        /// The error of the address that was tried last.
        #[source]
        last: DialError,
    },
    /// What answers is not the cluster the token names. The secret was not sent.
    #[error(
        "what answers at {address} is not the cluster that issued the token (its authority is another); the secret was not sent"
    )]
    WrongAuthority {
        /// Where.
        address: SocketAddr,
    },
    /// The cluster speaks another version of the protocol. The secret was not sent.
    #[error("the cluster speaks protocol version {theirs}, this node speaks {ours}: upgrade the older one")]
    Version {
        /// What this node speaks.
        ours: u8,
        /// What the cluster speaks.
        theirs: u8,
    },
    /// The cluster never issued the token, or withdrew it.
    #[error("the cluster does not know this token: ask for a new one")]
    TokenUnknown,
    /// The token's time is over.
    #[error("the token has expired: ask for a new one")]
    TokenExpired,
    /// The token has been used.
    #[error("the token has been used: each admits one node once, so ask for a new one")]
    TokenUsed,
    /// The cluster refused for another reason.
    #[error("the cluster refused: {0}")]
    Refused(Fault),
    /// The request was sent and no answer came. The node may have been admitted; joining again with the same token and the
    /// same key finds out, and gets what was missed.
    #[error("no answer to the join, so this node may have been admitted or not: run the same command again")]
    Unknown,
    /// The cluster's answer does not fit together.
    #[error("the cluster's answer is unusable: {0}")]
    BadReply(&'static str),
    /// The issued certificate does not make an identity.
    #[error("the issued certificate is unusable")]
    Identity(#[from] IdentityError),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Joins the cluster that issued the token: as the node named `name`, which will listen on `listen` and prove itself by
/// `key`. Tries the token's addresses in their order until one of them decides, for at most `deadline` in all.
///
/// # Errors
/// Each error says whether the token may be used up: only [`JoinError::Unknown`] leaves that open.
pub async fn join(
    token: &Token,
    name: &str,
    listen: SocketAddr,
    key: &NodeKey,
    deadline: Duration,
) -> Result<Joined, JoinError> {
    if token.node_name != name {
        return Err(JoinError::WrongName { expected: token.node_name.clone(), found: name.to_owned() });
    }
    let until = Instant::now() + deadline;
    let request = JoinRequest {
        secret: token.secret,
        name: name.to_owned(),
        address: listen,
        signing_request: key.signing_request(name)?,
    };
    let mut last = None;
    for (tried, address) in token.addresses.iter().enumerate() {
        let share =
            until.saturating_duration_since(Instant::now()) / u32::try_from(token.addresses.len() - tried).unwrap_or(1);
        let dial_until = (Instant::now() + share.max(ATTEMPT_MIN)).min(until);
        let error = match attempt(token, *address, &request, dial_until, until).await {
            Ok(reply) => return admitted(token, name, key, reply),
            Err(error) => error,
        };
        tracing::warn!(%address, %error, "could not join through this address");
        // Only where nothing was decided is it worth asking elsewhere.
        let undecided = match &error {
            JoinError::Unreachable { .. } | JoinError::WrongAuthority { .. } => true,
            JoinError::Refused(fault) => matches!(fault.code, fault::ASK_ANOTHER | fault::BUSY | fault::CLOSING),
            JoinError::WrongName { .. }
            | JoinError::Version { .. }
            | JoinError::TokenUnknown
            | JoinError::TokenExpired
            | JoinError::TokenUsed
            | JoinError::Unknown
            | JoinError::BadReply(_)
            | JoinError::Identity(_)
            | JoinError::Key(_) => false,
        };
        if !undecided {
            return Err(error);
        }
        // An authority that does not match is worse news than an address that does not answer.
        if !matches!(last, Some(JoinError::WrongAuthority { .. })) {
            last = Some(error);
        }
    }
    Err(last.unwrap_or(JoinError::BadReply("the token names no address")))
}

async fn attempt(
    token: &Token,
    address: SocketAddr,
    request: &JoinRequest,
    dial_until: Instant,
    until: Instant,
) -> Result<JoinReply, JoinError> {
    let tasks = TaskTracker::new();
    let result = exchange(token, address, request, dial_until, until, &tasks).await;
    // The endpoint is gone by now; its tasks end when the server has heard of it.
    tasks.close();
    let _ = timeout_at(Instant::now() + ATTEMPT_MIN, tasks.wait()).await;
    result
}

async fn exchange(
    token: &Token,
    address: SocketAddr,
    request: &JoinRequest,
    dial_until: Instant,
    until: Instant,
    tasks: &TaskTracker,
) -> Result<JoinReply, JoinError> {
    let unreachable = |last| JoinError::Unreachable { last };
    let dialled = timeout_at(dial_until, dial(token, address, tasks)).await;
    let connection = match dialled.unwrap_or(Err(DialError::Deadline { address })) {
        Ok(connection) => connection,
        Err(DialError::WrongCluster { address, .. }) => return Err(JoinError::WrongAuthority { address }),
        Err(DialError::Version { ours, theirs, .. }) => return Err(JoinError::Version { ours, theirs }),
        Err(error) => return Err(unreachable(error)),
    };
    let broken = |detail: String| unreachable(DialError::Broken { address, detail });

    let body = codec::encode(request, Limit::Small).map_err(|error| broken(error.to_string()))?;
    let left = until.saturating_duration_since(Instant::now());
    let opening = Opening {
        kind: StreamKind::Join,
        method: 0,
        body_bytes: u32::try_from(body.len()).unwrap_or(u32::MAX),
        patience_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
    };
    let (send, recv) = connection.open_bi().await.map_err(|error| broken(error.to_string()))?;
    let (mut send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
    match timeout_at(until, exchange::write_opening(&mut send, opening, Bytes::from(body))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(broken(error.to_string())),
        Err(_) => return Err(unreachable(DialError::Deadline { address })),
    }
    let _ = send.finish();
    let answer = timeout_at(until, exchange::read_answer(&mut recv, JOIN_BYTES_MAX)).await;
    connection.close(0_u32.into(), b"done");
    match answer {
        Ok(Ok(Answer::Done(bytes))) => {
            codec::decode(&bytes, Limit::Small).map_err(|_| JoinError::BadReply("not a join reply"))
        }
        Ok(Ok(Answer::Fault(fault) | Answer::Refused(fault))) => Err(match fault.code {
            fault::TOKEN_UNKNOWN => JoinError::TokenUnknown,
            fault::TOKEN_EXPIRED => JoinError::TokenExpired,
            fault::TOKEN_USED => JoinError::TokenUsed,
            fault::JOIN_UNDECIDED => JoinError::Unknown,
            _ => JoinError::Refused(fault),
        }),
        Ok(Err(AnswerError::Malformed | AnswerError::TooLarge { .. })) => Err(JoinError::BadReply("not a join reply")),
        Ok(Err(AnswerError::Stream(_))) | Err(_) => Err(JoinError::Unknown),
    }
}

/// A connection to a node of the token's cluster: proved, greeted, and without a word of the secret.
async fn dial(token: &Token, address: SocketAddr, tasks: &TaskTracker) -> Result<quinn::Connection, DialError> {
    let broken = |detail: String| DialError::Broken { address, detail };
    let record = Record::default();
    let destination = Destination { address, cluster: token.cluster, node: None, record: record.clone() };
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = std::net::UdpSocket::bind(any).map_err(|error| broken(error.to_string()))?;
    let runtime = Arc::new(TrackedRuntime { tasks: tasks.clone() });
    let endpoint = quinn::Endpoint::new(transport::plain_endpoint(&rand::random(), None), None, socket, runtime)
        .map_err(|error| broken(error.to_string()))?;
    let crypto = tls::joining(token.authority(), record).map_err(|error| broken(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport::dialling(Closing::default(), Class::Bulk));
    let connection = endpoint
        .connect_with(config, address, &format!("join.{}.pollux", token.cluster))
        .map_err(|error| broken(error.to_string()))?
        .await
        .map_err(|error| explain(&error, &destination))?;

    // A certificate of the right authority, and that of a node which may admit others.
    let claims = verified_claims(&connection).filter(|claims| claims.cluster == token.cluster);
    if claims.is_none_or(|claims| claims.role != Role::Member) {
        connection.close(1_u32.into(), b"not a member");
        return Err(DialError::NotPollux { address, detail: "its certificate is not a member's".to_owned() });
    }
    let hello = Hello { version: VERSION, purpose: Purpose::Join, cluster: token.cluster, node: NodeId(0) };
    let answer = greet::greet(&connection, hello).await;
    explain_greeting(answer, &connection, &destination)?;
    Ok(connection)
}

fn admitted(token: &Token, name: &str, key: &NodeKey, reply: JoinReply) -> Result<Joined, JoinError> {
    if Fingerprint::of(&reply.ca) != token.authority() {
        return Err(JoinError::BadReply("it names another authority than the token"));
    }
    let identity = Identity::new(reply.certificate, reply.ca, key.clone())?;
    if identity.cluster() != token.cluster || identity.cluster() != reply.cluster {
        return Err(JoinError::BadReply("the certificate is for another cluster"));
    }
    if identity.node() != reply.node || identity.name() != name {
        return Err(JoinError::BadReply("the certificate is for another node"));
    }
    Ok(Joined { identity, members: reply.members })
}
