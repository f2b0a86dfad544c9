//! Joins, at the side that admits: one connection, one request, one answer. The joiner has no certificate; what it has is
//! the secret, which the service compares with what the cluster agreed on.

use std::time::Duration;

use bytes::Bytes;
use pollux_wire::{
    codec, fault,
    frame::StreamKind,
    join::JoinRequest,
    limits::{JOIN_BYTES_MAX, Limit},
};
use tokio::time::timeout;

use crate::{
    dial::canonical,
    endpoint::Shared,
    exchange::{self, Answer},
    service::Fault,
    stream::{RecvStream, SendStream, StreamError},
};

/// The request follows the greeting at once. Whoever connects and says nothing takes a place from those who join.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// A join has this long, the cluster's decision included.
const JOIN_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(JOIN_BYTES_MAX <= Limit::Small.bytes());

/// Serves the one join of a connection.
pub(crate) async fn serve(shared: &Shared, connection: &quinn::Connection) {
    let from = canonical(connection.remote_address());
    match timeout(JOIN_MAX, exchange(shared, connection)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%from, %error, "a join broke off"),
        Err(_) => {
            shared.counting.overdue.add();
            tracing::warn!(%from, "a join took too long");
        }
    }
    connection.close(0_u32.into(), b"done");
}

async fn exchange(shared: &Shared, connection: &quinn::Connection) -> Result<(), StreamError> {
    let asked = timeout(REQUEST_MAX, read(shared, connection)).await;
    let (mut send, request) = asked.map_err(|_| StreamError::Lost("no request came".to_owned()))??;
    let answer = match request {
        Ok(request) => decide(shared, connection, request).await,
        Err(fault) => Answer::Refused(fault),
    };
    exchange::write_answer(&mut send, answer).await?;
    send.finish()?;
    send.delivered().await
}

/// The request, or why it is none.
async fn read(
    shared: &Shared,
    connection: &quinn::Connection,
) -> Result<(SendStream, Result<JoinRequest, Fault>), StreamError> {
    let (send, recv) = connection.accept_bi().await.map_err(|error| StreamError::Lost(error.to_string()))?;
    let (send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
    let malformed = |what: &str| {
        shared.counting.malformed.add();
        Err(Fault::malformed(what))
    };
    let Some(opening) = exchange::read_opening(&mut recv).await?.filter(|opening| opening.kind == StreamKind::Join)
    else {
        return Ok((send, malformed("not a join")));
    };
    let size_bytes = usize::try_from(opening.body_bytes).unwrap_or(usize::MAX);
    if size_bytes > JOIN_BYTES_MAX {
        shared.counting.oversize.add();
        let text = format!("a join has at most {JOIN_BYTES_MAX} bytes, this one has {size_bytes}");
        return Ok((send, Err(Fault::new(fault::TOO_LARGE, text))));
    }
    let body = exchange::read_body(&mut recv, size_bytes).await?;
    let request = codec::decode(&body, Limit::Small).or_else(|_| malformed("not a join request"));
    Ok((send, request))
}

async fn decide(shared: &Shared, connection: &quinn::Connection, request: JoinRequest) -> Answer {
    let from = canonical(connection.remote_address());
    let name = request.name.clone();
    match shared.service.join(from, request).await {
        Ok(reply) => match codec::encode(&reply, Limit::Small) {
            Ok(bytes) => {
                shared.counting.joins_served.add();
                tracing::info!(%from, name, node = %reply.node, "admitted a node");
                Answer::Done(Bytes::from(bytes))
            }
            Err(error) => Answer::Fault(Fault::new(fault::ANSWER_TOO_LARGE, error.to_string())),
        },
        Err(fault) => {
            shared.counting.joins_refused.add();
            if fault::is_bad_token(fault.code) {
                shared.counting.bad_token.add();
            }
            tracing::warn!(%from, name, %fault, "refused to admit a node");
            Answer::Fault(fault)
        }
    }
}
