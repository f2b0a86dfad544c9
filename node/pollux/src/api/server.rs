//! Serves the API: accepts connections, bounds them in number and time, ends them when the daemon ends.
//!
//! Owned by the daemon, which calls [`serve`] once and cancels the token when it stops. One task per connection; each belongs to
//! the server's tracker, so that nothing outlives it.

use std::{path::Path, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{Backend, listener::Socket, routes};

pub use super::listener::ServeError;

/// Connections served at the same time; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 128;
/// Scrapes of the metrics served over TCP at the same time; further ones wait in the kernel's queue.
pub const SCRAPES_MAX: usize = 8;
/// A client gets this many milliseconds to send a request's head, its first as well as its next.
pub const HEAD_MS_MAX: u64 = 60_000;
/// How often a waiting request looks again even though nothing changed on this node, in milliseconds.
pub const REREAD_MS: u64 = 250;
/// What is being answered when the daemon stops gets this many milliseconds to end.
pub const GRACE_MS: u64 = 2_000;
/// After a failed accept (too many open files), the next try waits this many milliseconds.
const ACCEPT_PAUSE_MS: u64 = 100;

/// Serve `backend` on a Unix socket at `socket` until `stop` is cancelled.
///
/// # Errors
/// When the socket cannot be made, above all because a daemon serves there already. Once it is made this returns only after
/// `stop`.
pub async fn serve(backend: Arc<dyn Backend>, socket: &Path, stop: CancellationToken) -> Result<(), ServeError> {
    let listener = Socket::bind(socket)?;
    info!(socket = %socket.display(), "serving the API");
    let tasks = TaskTracker::new();
    let router = routes::router(backend, stop.clone(), tasks.clone());
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Ok(place) = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn(async move {
                    converse(stream, router, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "a connection to the API could not be accepted");
                time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
    tasks.close();
    if time::timeout(Duration::from_millis(GRACE_MS), tasks.wait()).await.is_err() {
        warn!(open = tasks.len(), "requests did not end in time");
    }
    Ok(())
}

/// Serve `GET /metrics`, and nothing else, to whoever connects to `listener`, until `stop` is cancelled.
pub async fn serve_metrics(backend: Arc<dyn Backend>, listener: TcpListener, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving metrics");
    }
    let tasks = TaskTracker::new();
    let router = routes::metrics_only(backend, stop.clone(), tasks.clone());
    let places = Arc::new(Semaphore::new(SCRAPES_MAX));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        match stop.run_until_cancelled(accepted).await.flatten() {
            Some((Ok((stream, _)), place)) => {
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn(async move {
                    converse(stream, router, stop).await;
                    drop(place);
                });
            }
            Some((Err(error), _)) => {
                warn!(%error, "a connection for metrics could not be accepted");
                time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
            None => break,
        }
    }
    tasks.close();
    if time::timeout(Duration::from_millis(GRACE_MS), tasks.wait()).await.is_err() {
        warn!(open = tasks.len(), "scrapes did not end in time");
    }
}

/// One connection, to its end: the request under way when the daemon stops is still answered, no further one is taken.
async fn converse<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_MS_MAX))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        biased;
        result = &mut connection => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            time::timeout(Duration::from_millis(GRACE_MS), connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        debug!(%error, "a connection to the API ended early");
    }
}
