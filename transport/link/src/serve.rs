//! The side that peers dial: accepts connections, greets them, and hands their streams to the service. One task per
//! connection and one per stream, all under the endpoint's tracker; they end with the connection or with the endpoint.

use std::{sync::Arc, time::Duration};

use pollux_wire::handshake::Purpose;
use quinn::{ConnectionError, TransportErrorCode, crypto::rustls::HandshakeData};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    admit,
    dial::{canonical, verified_claims},
    endpoint::Shared,
    explain::{Refusal, refusal},
    greet::{self, Expected},
    service::{Class, Peer},
    streams,
    tls::{ALPN_JOIN, ALPN_NODE},
};

/// A peer that dials has this long to complete TLS and greet. Longer than any dial, so that the dialling side gives up first.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Accepts connections until the endpoint closes.
pub(crate) async fn accept(shared: Arc<Shared>, quinn: quinn::Endpoint) {
    let handshakes = Arc::new(Semaphore::new(shared.limits.handshakes));
    let connections = Arc::new(Semaphore::new(shared.limits.connections));
    let joins = Arc::new(Semaphore::new(shared.limits.joins));
    loop {
        let incoming = tokio::select! {
            () = shared.stop.cancelled() => return,
            incoming = quinn.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let from = canonical(incoming.remote_address());
        let permits = (handshakes.clone().try_acquire_owned(), connections.clone().try_acquire_owned());
        let (Ok(handshake), Ok(connection)) = permits else {
            shared.counting.busy.add();
            tracing::warn!(%from, "refused a connection: as many as there may be");
            incoming.refuse();
            continue;
        };
        // When many are at it, an address has to prove itself before it costs a handshake.
        if handshakes.available_permits() < shared.limits.handshakes / 2 && !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            continue;
        }
        match incoming.accept() {
            Ok(connecting) => {
                let served = serve(shared.clone(), connecting, handshake, joins.clone());
                let stop = shared.stop.clone();
                shared.tasks.spawn(async move {
                    let _connection = connection;
                    stop.run_until_cancelled(served).await;
                });
            }
            Err(error) => {
                shared.counting.garbage.add();
                tracing::debug!(%from, %error, "a first datagram that starts no connection");
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    connecting: quinn::Connecting,
    handshake: OwnedSemaphorePermit,
    joins: Arc<Semaphore>,
) {
    let from = canonical(connecting.remote_address());
    let connection = match timeout(HANDSHAKE_MAX, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            count_failure(&shared, &error);
            tracing::warn!(%from, %error, "a connection failed before it was set up");
            return;
        }
        Err(_) => {
            shared.counting.handshakes_failed.add();
            return;
        }
    };
    let Some(mut expected) = identify(&shared, &connection) else {
        connection.close(1_u32.into(), b"not identified");
        return;
    };
    let mut place = None;
    if let Expected::Joiner { busy } = &mut expected {
        place = joins.try_acquire().ok();
        *busy = place.is_none();
    }
    let purpose = match timeout(HANDSHAKE_MAX, greet::receive(&shared, &connection, &expected)).await {
        Ok(Ok(Some(purpose))) => purpose,
        Ok(Ok(None)) => {
            connection.close(1_u32.into(), b"refused");
            return;
        }
        Ok(Err(error)) => {
            shared.counting.handshakes_failed.add();
            tracing::debug!(%from, ?error, "a connection broke during the greeting");
            return;
        }
        Err(_) => {
            shared.counting.handshakes_failed.add();
            connection.close(1_u32.into(), b"no greeting");
            return;
        }
    };
    drop(handshake);
    shared.counting.connections_accepted.add();
    match (expected, purpose) {
        (Expected::Joiner { .. }, _) => admit::serve(&shared, &connection).await,
        (Expected::Peer(peer), Purpose::Consensus) => streams::serve(shared, connection, peer, Class::Consensus).await,
        (Expected::Peer(peer), Purpose::Bulk | Purpose::Join) => {
            streams::serve(shared, connection, peer, Class::Bulk).await
        }
    }
    drop(place);
}

/// Who is there, by protocol and certificate.
fn identify(shared: &Shared, connection: &quinn::Connection) -> Option<Expected> {
    let protocol = connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol?;
    if protocol == ALPN_JOIN {
        return Some(Expected::Joiner { busy: false });
    }
    let claims = verified_claims(connection).filter(|_| protocol == ALPN_NODE);
    let Some(claims) = claims.filter(|claims| claims.cluster == shared.identity.cluster()) else {
        shared.counting.unauthenticated.add();
        tracing::warn!(from = %connection.remote_address(), "refused a connection without a node's certificate");
        return None;
    };
    let address = canonical(connection.remote_address());
    Some(Expected::Peer(Peer { node: claims.node, role: claims.role, address }))
}

fn count_failure(shared: &Shared, error: &ConnectionError) {
    // Certificates that this side rejects are alerts 42 to 48, and the verifier has counted them.
    let rejected_here = |code| (42..=48).any(|alert| code == TransportErrorCode::crypto(alert));
    match error {
        ConnectionError::TransportError(error) if rejected_here(error.code) => {}
        ConnectionError::ConnectionClosed(close) => match refusal(close.error_code) {
            Refusal::Foreign => shared.counting.wrong_cluster.add(),
            Refusal::OtherName => shared.counting.wrong_identity.add(),
            Refusal::Busy | Refusal::NoProtocol | Refusal::Other => shared.counting.handshakes_failed.add(),
        },
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => shared.counting.handshakes_failed.add(),
    }
}
