//! The other end of the API's socket: typed calls for the CLI, the lab and tests.
//!
//! One connection per request, so that a daemon that was started again in between is nothing special. A call ends with an
//! answer, or with an [`ApiError`] that says whether the change can have happened.

mod storage;

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Method, Request, StatusCode, client::conn::http1, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use pollux_api::{
    AGE_HEADER, ANSWER_BYTES_MAX, ApiError, ClusterView, CreateVm, ErrorKind, EventsView, LOG_NEXT_HEADER, MigrateVm,
    NodeView, OperationView, Preflight, PreflightView, REQUEST_MS_MAX, ReleaseVm, RemoveNode, RemovedView, StartVm,
    StopVm, TakeBack, TokenRequest, TokenView, VmLog, VmView, WAIT_MS_MAX, WhyView,
    console::{Heard, PROTOCOL, Start},
    request::segment,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    net::UnixStream,
    time,
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::console;

/// What a request may take longer than the server's own limit before the client gives up on it, in milliseconds.
const PATIENCE_MS: u64 = 5_000;
/// Name of the host in requests; a Unix socket has none.
const HOST: &str = "pollux";

/// Speaks to the daemon on one socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    /// Reads are content with what the node knew last.
    stale: bool,
    age: Arc<Mutex<Option<Age>>>,
}

/// How old what a node showed may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// At most so many milliseconds.
    Ms(u64),
    /// The node has not been in touch with a leader since its daemon was started.
    Unknown,
}

/// A view and the tag by which the server recognises it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged<T> {
    /// The view.
    pub view: T,
    tag: Option<header::HeaderValue>,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// A client of the daemon that serves `socket`. Connects with each call, not now.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), stale: false, age: Arc::default() }
    }

    /// The same, whose reads show what the node knew last, also without a quorum. [`Self::age`] says how old that may be.
    #[must_use]
    pub fn stale(mut self) -> Self {
        self.stale = true;
        // How old its answers are is no news of the client that it was made of.
        self.age = Arc::default();
        self
    }

    /// How old the last answer to a read of a [stale](Self::stale) client may be.
    #[must_use]
    pub fn age(&self) -> Option<Age> {
        *self.age.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket it speaks to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The cluster as a whole.
    ///
    /// # Errors
    /// See [`Self`]'s module; the same holds for every call below.
    pub async fn cluster(&self) -> Result<ClusterView, ApiError> {
        self.get("/v1/cluster").await
    }

    /// Events after number `after`, or all that are kept, waiting up to `wait` for the first.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn events(&self, after: Option<u64>, wait: Duration) -> Result<EventsView, ApiError> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let path = format!("/v1/events?wait_ms={}{after}", wait_ms(wait));
        parse(&self.ask(Method::GET, &path, Bytes::new(), None, wait).await?)
    }

    /// A new join token.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn create_token(&self, request: &TokenRequest) -> Result<TokenView, ApiError> {
        self.post("/v1/tokens", request).await
    }

    /// All nodes.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn nodes(&self) -> Result<Vec<NodeView>, ApiError> {
        self.get("/v1/nodes").await
    }

    /// One node.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn node(&self, name: &str) -> Result<NodeView, ApiError> {
        self.get(&format!("/v1/nodes/{}", segment(name))).await
    }

    /// All VMs.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn vms(&self) -> Result<Vec<VmView>, ApiError> {
        self.get("/v1/vms").await
    }

    /// One VM.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn vm(&self, name: &str) -> Result<VmView, ApiError> {
        self.get(&format!("/v1/vms/{}", segment(name))).await
    }

    /// One VM, once it differs from `seen` or `wait` is over, whichever comes first.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn vm_after(
        &self,
        name: &str,
        seen: Option<&Tagged<VmView>>,
        wait: Duration,
    ) -> Result<Tagged<VmView>, ApiError> {
        self.get_after(&format!("/v1/vms/{}", segment(name)), seen, wait).await
    }

    /// Create a VM.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn create_vm(&self, request: &CreateVm) -> Result<VmView, ApiError> {
        self.post("/v1/vms", request).await
    }

    /// Want a VM running.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn start_vm(&self, name: &str, request: &StartVm) -> Result<VmView, ApiError> {
        self.post(&format!("/v1/vms/{}/start", segment(name)), request).await
    }

    /// Want a VM stopped.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn stop_vm(&self, name: &str, request: &StopVm) -> Result<VmView, ApiError> {
        self.post(&format!("/v1/vms/{}/stop", segment(name)), request).await
    }

    /// Forget a stopped VM.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn delete_vm(&self, name: &str) -> Result<VmView, ApiError> {
        parse(
            &self
                .ask(Method::DELETE, &format!("/v1/vms/{}", segment(name)), Bytes::new(), None, Duration::ZERO)
                .await?,
        )
    }

    /// Begin a live migration.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn migrate_vm(&self, name: &str, request: &MigrateVm) -> Result<OperationView, ApiError> {
        self.post(&format!("/v1/vms/{}/migrate", segment(name)), request).await
    }

    /// Whether a VM could be moved, and what it would cost.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn preflight_vm(&self, name: &str, request: &Preflight) -> Result<PreflightView, ApiError> {
        self.post(&format!("/v1/vms/{}/preflight", segment(name)), request).await
    }

    /// Why a VM is where it is, and whether it could be on each node.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn why_vm(&self, name: &str) -> Result<WhyView, ApiError> {
        self.get(&format!("/v1/vms/{}/why", segment(name))).await
    }

    /// Give a VM back to its source although its target cannot be asked.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn take_back_vm(&self, name: &str, request: &TakeBack) -> Result<VmView, ApiError> {
        self.post(&format!("/v1/vms/{}/takeback", segment(name)), request).await
    }

    /// Release a VM whose owner's host is lost.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn release_vm(&self, name: &str, request: &ReleaseVm) -> Result<VmView, ApiError> {
        self.post(&format!("/v1/vms/{}/release", segment(name)), request).await
    }

    /// Remove a node for good.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn remove_node(&self, name: &str, request: &RemoveNode) -> Result<RemovedView, ApiError> {
        self.post(&format!("/v1/nodes/{}/remove", segment(name)), request).await
    }

    /// What a VM wrote to its console from position `from` on, waiting up to `wait` for something to be there.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn vm_log(&self, name: &str, from: u64, wait: Duration) -> Result<VmLog, ApiError> {
        let path = format!("/v1/vms/{}/log?from={from}&wait_ms={}", segment(name), wait_ms(wait));
        let reply = self.ask(Method::GET, &path, Bytes::new(), None, wait).await?;
        let next = reply.headers.get(LOG_NEXT_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let next = next.ok_or_else(|| not_ours(&format!("no {LOG_NEXT_HEADER} header")))?;
        Ok(VmLog { next, bytes: reply.body.to_vec() })
    }

    /// Attaches to a VM's serial console.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn console(&self, name: &str, start: Start) -> Result<Attachment, ApiError> {
        let from = match start {
            Start::Last(bytes) => format!("last={bytes}"),
            Start::At(place) => format!("at={place}"),
        };
        let path = format!("/v1/vms/{}/console?{from}", segment(name));
        let request = Request::get(&path)
            .header(header::HOST, HOST)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, PROTOCOL)
            .body(Full::new(Bytes::new()))
            .map_err(|error| ApiError::invalid(format!("the request {path} cannot be made: {error}")))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_daemon(&error))?;
        let patience = Duration::from_millis(REQUEST_MS_MAX + PATIENCE_MS);
        let upgraded = time::timeout(patience, upgrade(stream, request))
            .await
            .map_err(|_| self.no_answer(false, "no answer in time"))?
            .map_err(|error| self.no_answer(false, &error))?;
        upgraded.map(Attachment::new).map_err(|reply| self.refusal(&path, &reply))
    }

    /// What the node measures, in the text form of Prometheus.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn metrics(&self) -> Result<String, ApiError> {
        let reply = self.ask(Method::GET, "/metrics", Bytes::new(), None, Duration::ZERO).await?;
        String::from_utf8(reply.body.to_vec()).map_err(|error| not_ours(&error.to_string()))
    }

    /// All operations remembered.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn operations(&self) -> Result<Vec<OperationView>, ApiError> {
        self.get("/v1/operations").await
    }

    /// One operation, by its id or an unambiguous beginning of it.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn operation(&self, id: &str) -> Result<OperationView, ApiError> {
        self.get(&format!("/v1/operations/{}", segment(id))).await
    }

    /// One operation, once it differs from `seen` or `wait` is over, whichever comes first.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn operation_after(
        &self,
        id: &str,
        seen: Option<&Tagged<OperationView>>,
        wait: Duration,
    ) -> Result<Tagged<OperationView>, ApiError> {
        self.get_after(&format!("/v1/operations/{}", segment(id)), seen, wait).await
    }

    /// Ask for an operation to end early.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn cancel_operation(&self, id: &str) -> Result<OperationView, ApiError> {
        self.post(&format!("/v1/operations/{}/cancel", segment(id)), &serde_json::json!({})).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        parse(&self.ask(Method::GET, path, Bytes::new(), None, Duration::ZERO).await?)
    }

    async fn get_after<T: DeserializeOwned + Clone>(
        &self,
        path: &str,
        seen: Option<&Tagged<T>>,
        wait: Duration,
    ) -> Result<Tagged<T>, ApiError> {
        let tag = seen.and_then(|seen| seen.tag.clone());
        let reply =
            self.ask(Method::GET, &format!("{path}?wait_ms={}", wait_ms(wait)), Bytes::new(), tag, wait).await?;
        match seen {
            Some(seen) if reply.status == StatusCode::NOT_MODIFIED => Ok(seen.clone()),
            _ => Ok(Tagged { view: parse(&reply)?, tag: reply.headers.get(header::ETAG).cloned() }),
        }
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).map_err(|error| ApiError::internal(format!("the request: {error}")))?;
        parse(&self.ask(Method::POST, path, body.into(), None, Duration::ZERO).await?)
    }

    /// One request, one answer. An answer that is not a success becomes the error in its body.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        tag: Option<header::HeaderValue>,
        wait: Duration,
    ) -> Result<Reply, ApiError> {
        let changes = method != Method::GET;
        let content = self.stale && !changes;
        let path = if content { with_query(path, "stale=true") } else { path.to_owned() };
        let mut request = Request::builder().method(method).uri(&path).header(header::HOST, HOST);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ApiError::invalid(format!("the request {path} cannot be made: {error}")))?;

        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_daemon(&error))?;
        let patience = wait + Duration::from_millis(REQUEST_MS_MAX + PATIENCE_MS);
        let reply = time::timeout(patience, exchange(stream, request))
            .await
            .map_err(|_| self.no_answer(changes, "no answer in time"))?
            .map_err(|error| self.no_answer(changes, &error))?;
        if content {
            *self.age.lock().unwrap_or_else(PoisonError::into_inner) = age_of(&reply.headers);
        }
        if reply.status.is_success() || reply.status == StatusCode::NOT_MODIFIED {
            return Ok(reply);
        }
        Err(self.refusal(&path, &reply))
    }

    fn refusal(&self, path: &str, reply: &Reply) -> ApiError {
        serde_json::from_slice(&reply.body).unwrap_or_else(|_| {
            let kind = ErrorKind::from_status(reply.status.as_u16());
            ApiError::new(kind, format!("{} answered {path} with {}", self.socket.display(), reply.status))
        })
    }

    fn no_daemon(&self, error: &io::Error) -> ApiError {
        let socket = self.socket.display();
        if error.kind() == io::ErrorKind::PermissionDenied {
            return ApiError::unavailable(format!("you may not use the daemon's socket {socket}"))
                .todo("be root, or a member of the group `pollux`");
        }
        ApiError::unavailable(format!("no daemon answers on {socket}: {error}"))
            .todo("start it with `pollux node run`, or name another socket with --socket (or POLLUX_SOCKET)")
    }

    /// The request went out, the answer did not come.
    fn no_answer(&self, changes: bool, why: &str) -> ApiError {
        let message = format!("the daemon on {} took the request and did not answer: {why}", self.socket.display());
        if changes {
            ApiError::unknown(format!("{message}; the change may or may not have happened"))
                .todo("look (`pollux vm show`, `pollux op list`) before asking again")
        } else {
            ApiError::unavailable(message).todo("see whether it runs and what its log says, then ask again")
        }
    }
}

fn with_query(path: &str, more: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}{more}")
}

fn age_of(headers: &HeaderMap) -> Option<Age> {
    let text = headers.get(AGE_HEADER)?.to_str().ok()?;
    Some(text.parse().map_or(Age::Unknown, Age::Ms))
}

/// A console that is attached.
pub struct Attachment {
    heard: FramedRead<ReadHalf<TokioIo<Upgraded>>, LengthDelimitedCodec>,
    typed: WriteHalf<TokioIo<Upgraded>>,
}

impl Attachment {
    fn new(upgraded: Upgraded) -> Self {
        let (read, typed) = tokio::io::split(TokioIo::new(upgraded));
        Self { heard: FramedRead::new(read, console::codec()), typed }
    }

    /// What is heard next; `None`: the connection is gone. Nothing is lost when this is given up half-way.
    pub async fn hear(&mut self) -> Option<Heard> {
        let frame = self.heard.next().await?.ok()?;
        Heard::decode(&frame).ok()
    }

    /// Type.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn type_in(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.typed.write_all(bytes).await
    }
}

/// A request that turns the connection into something else; the answer if the server would not.
async fn upgrade(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Result<Upgraded, Reply>, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let mut answer = pin!(async move {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return hyper::upgrade::on(answer).await.map(Ok).map_err(|error| error.to_string());
        }
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        Ok(Err(Reply { status: head.status, headers: head.headers, body: body.to_bytes() }))
    });
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection.with_upgrades() => answer.await,
    }
}

/// Drive the connection and the request on it together: there is nothing to leave behind when the answer is there.
async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Reply, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let mut answer = pin!(async move {
        let (head, body) = sender.send_request(request).await.map_err(|error| error.to_string())?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
    });
    tokio::select! {
        biased;
        reply = &mut answer => reply,
        // The connection may end before its last bytes are taken out of it; what it ended with, the answer tells.
        _ = connection => answer.await,
    }
}

fn parse<T: DeserializeOwned>(reply: &Reply) -> Result<T, ApiError> {
    serde_json::from_slice(&reply.body).map_err(|error| not_ours(&error.to_string()))
}

fn not_ours(why: &str) -> ApiError {
    ApiError::internal(format!("the daemon's answer is not one of this version: {why}"))
        .todo("use the `pollux` of the same version as the daemon")
}

fn wait_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(WAIT_MS_MAX).min(WAIT_MS_MAX)
}
