//! The handshake on the first stream of a connection, both sides (see [`pollux_wire::handshake`]). TLS has proved who the
//! other side is; this settles version, cluster and purpose, and says so in words when it fails.

use pollux_wire::{
    handshake::{ANSWER_BYTES, Answer, HELLO_BYTES, HandshakeError, Hello, Purpose, Verdict},
    id::NodeId,
};

use crate::{
    counters::Counting,
    endpoint::Shared,
    service::{Class, Peer},
    stream::{RecvStream, SendStream, StreamError},
};

/// The greeting failed.
#[derive(Debug)]
pub(crate) enum GreetError {
    Stream(StreamError),
    Handshake(HandshakeError),
}

impl From<StreamError> for GreetError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl From<quinn::ConnectionError> for GreetError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Stream(StreamError::Lost(error.to_string()))
    }
}

/// The dialling side.
pub(crate) async fn greet(connection: &quinn::Connection, hello: Hello) -> Result<Answer, GreetError> {
    let (send, recv) = connection.open_bi().await?;
    let (mut send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
    send.write_all(&hello.to_bytes()).await?;
    send.finish()?;
    let mut answer = [0; ANSWER_BYTES];
    recv.read_exact(&mut answer).await?;
    Answer::parse(answer, hello.version).map_err(GreetError::Handshake)
}

/// Who the other side may claim to be.
pub(crate) enum Expected {
    Peer(Peer),
    /// A node without a certificate; `busy` when too many others are joining.
    Joiner {
        busy: bool,
    },
}

/// The answering side. `None`: it was refused, and told so.
pub(crate) async fn receive(
    shared: &Shared,
    connection: &quinn::Connection,
    expected: &Expected,
) -> Result<Option<Purpose>, GreetError> {
    let (send, recv) = connection.accept_bi().await?;
    let (mut send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
    let mut hello = [0; HELLO_BYTES];
    recv.read_exact(&mut hello).await?;
    let hello = Hello::parse(hello, shared.version);
    let verdict = judge(shared, &hello, expected);
    let answer = Answer { version: shared.version, verdict, node: shared.identity.node() };
    send.write_all(&answer.to_bytes()).await?;
    send.finish()?;
    match hello {
        Ok(hello) if verdict == Verdict::Accepted => Ok(Some(hello.purpose)),
        Ok(_) | Err(_) => {
            let from = connection.remote_address();
            match hello {
                Err(HandshakeError::NotPollux | HandshakeError::Malformed) => shared.counting.malformed.add(),
                Ok(_) | Err(HandshakeError::Version { .. }) => count(&shared.counting, verdict),
            }
            tracing::warn!(%from, ?hello, %verdict, ours = shared.version, "refused a connection");
            // Only so that the answer arrives before the close does; that the peer is gone already is fine too.
            let _ = send.delivered().await;
            Ok(None)
        }
    }
}

fn judge(shared: &Shared, hello: &Result<Hello, HandshakeError>, expected: &Expected) -> Verdict {
    let hello = match hello {
        Ok(hello) => hello,
        Err(HandshakeError::Version { .. }) => return Verdict::WrongVersion,
        Err(HandshakeError::NotPollux | HandshakeError::Malformed) => return Verdict::WrongIdentity,
    };
    if hello.cluster != shared.identity.cluster() {
        return Verdict::WrongCluster;
    }
    let claims_fit = match expected {
        Expected::Peer(peer) => hello.node == peer.node && class(hello.purpose).is_some(),
        Expected::Joiner { .. } => hello.node == NodeId(0) && hello.purpose == Purpose::Join,
    };
    match expected {
        _ if !claims_fit => Verdict::WrongIdentity,
        Expected::Peer(peer) if !shared.service.admits(peer.node) => Verdict::NotAdmitted,
        Expected::Joiner { busy: true } => Verdict::Busy,
        Expected::Peer(_) | Expected::Joiner { busy: false } => Verdict::Accepted,
    }
}

fn count(counting: &Counting, verdict: Verdict) {
    match verdict {
        Verdict::Accepted => {}
        Verdict::WrongVersion => counting.wrong_version.add(),
        Verdict::WrongCluster => counting.wrong_cluster.add(),
        Verdict::WrongIdentity => counting.wrong_identity.add(),
        Verdict::NotAdmitted => counting.not_admitted.add(),
        Verdict::Busy => counting.busy.add(),
    }
}

/// The class of a connection between nodes.
pub(crate) const fn class(purpose: Purpose) -> Option<Class> {
    match purpose {
        Purpose::Consensus => Some(Class::Consensus),
        Purpose::Bulk => Some(Class::Bulk),
        Purpose::Join => None,
    }
}

/// What a connection of this class says it is for.
pub(crate) const fn purpose(class: Class) -> Purpose {
    match class {
        Class::Consensus => Purpose::Consensus,
        Class::Bulk => Purpose::Bulk,
    }
}
