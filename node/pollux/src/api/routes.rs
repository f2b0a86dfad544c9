//! Paths, bodies, deadlines, waiting: between HTTP and [`Backend`].

mod storage;

use std::{
    collections::hash_map::DefaultHasher,
    future::Future,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::rt::TokioIo;
use pollux_api::{
    AGE_HEADER, AGE_UNKNOWN, ApiError, BODY_BYTES_MAX, CONSOLES_MAX, CreateVm, LOG_NEXT_HEADER, MigrateVm, Preflight,
    REQUEST_MS_MAX, ReleaseVm, RemoveNode, StartVm, StopVm, TakeBack, TokenRequest, WAIT_MS_MAX,
    console::PROTOCOL,
    request::{self, ConsoleQuery, ReadQuery},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::Semaphore,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Backend, METRICS_TYPE, server::REREAD_MS};

#[derive(Clone)]
struct Context {
    backend: Arc<dyn Backend>,
    stop: CancellationToken,
    /// Consoles outlive the request that asked for them.
    tasks: TaskTracker,
    consoles: Arc<Semaphore>,
}

/// An error as an answer.
struct Refused(ApiError);

type Answer = Result<Response, Refused>;
type Waiting = Result<Query<ReadQuery>, QueryRejection>;

/// All of the API.
pub(crate) fn router(backend: Arc<dyn Backend>, stop: CancellationToken, tasks: TaskTracker) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/cluster", get(cluster))
        .route("/v1/events", get(events))
        .route("/v1/tokens", post(create_token))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}", get(node))
        .route("/v1/nodes/{name}/remove", post(remove_node))
        .route("/v1/vms", get(vms).post(create_vm))
        .route("/v1/vms/{name}", get(vm).delete(delete_vm))
        .route("/v1/vms/{name}/start", post(start_vm))
        .route("/v1/vms/{name}/stop", post(stop_vm))
        .route("/v1/vms/{name}/migrate", post(migrate_vm))
        .route("/v1/vms/{name}/preflight", post(preflight_vm))
        .route("/v1/vms/{name}/takeback", post(take_back_vm))
        .route("/v1/vms/{name}/why", get(why_vm))
        .route("/v1/vms/{name}/release", post(release_vm))
        .route("/v1/vms/{name}/log", get(vm_log))
        .route("/v1/vms/{name}/console", get(console))
        .route("/v1/operations", get(operations))
        .route("/v1/operations/{id}", get(operation))
        .route("/v1/operations/{id}/cancel", post(cancel_operation))
        .merge(storage::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Context { backend, stop, tasks, consoles: Arc::new(Semaphore::new(CONSOLES_MAX)) })
}

/// The one part of the API that may be served to strangers.
pub(crate) fn metrics_only(backend: Arc<dyn Backend>, stop: CancellationToken, tasks: TaskTracker) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(async || Refused(ApiError::not_found("only /metrics is served here")))
        .method_not_allowed_fallback(no_such_method)
        .with_state(Context { backend, stop, tasks, consoles: Arc::new(Semaphore::new(0)) })
}

async fn metrics(State(context): State<Context>) -> Answer {
    let text = read(context.backend.metrics()).await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE))], text).into_response())
}

async fn cluster(State(context): State<Context>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.cluster()).await?))
}

async fn events(State(context): State<Context>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    let nothing_new = |found: &pollux_api::EventsView| found.events.is_empty();
    let found = context.until(&query, nothing_new, || context.backend.events(query.after)).await?;
    json(StatusCode::OK, &found)
}

async fn create_token(State(context): State<Context>, Body(request): Body<TokenRequest>) -> Answer {
    json(StatusCode::CREATED, &write(context.backend.create_token(request)).await?)
}

async fn nodes(State(context): State<Context>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.current(&query).await?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.nodes()).await?))
}

async fn node(State(context): State<Context>, Path(name): Path<String>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.current(&query).await?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.node(&name)).await?))
}

async fn vms(State(context): State<Context>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.current(&query).await?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.vms()).await?))
}

async fn create_vm(State(context): State<Context>, Body(request): Body<CreateVm>) -> Answer {
    json(StatusCode::CREATED, &write(context.backend.create_vm(request)).await?)
}

async fn vm(State(context): State<Context>, Path(name): Path<String>, headers: HeaderMap, query: Waiting) -> Answer {
    let query = query_of(query)?;
    let look = || async {
        context.current(&query).await?;
        context.backend.vm(&name).await
    };
    context.aged(&query, context.unless_same(&headers, &query, look).await)
}

async fn delete_vm(State(context): State<Context>, Path(name): Path<String>) -> Answer {
    json(StatusCode::OK, &write(context.backend.delete_vm(&name)).await?)
}

async fn start_vm(State(context): State<Context>, Path(name): Path<String>, Body(request): Body<StartVm>) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.start_vm(&name, request)).await?)
}

async fn stop_vm(State(context): State<Context>, Path(name): Path<String>, Body(request): Body<StopVm>) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.stop_vm(&name, request)).await?)
}

async fn migrate_vm(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<MigrateVm>,
) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.migrate_vm(&name, request)).await?)
}

async fn preflight_vm(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<Preflight>,
) -> Answer {
    json(StatusCode::OK, &read(context.backend.preflight_vm(&name, request)).await?)
}

async fn take_back_vm(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<TakeBack>,
) -> Answer {
    json(StatusCode::OK, &write(context.backend.take_back_vm(&name, request)).await?)
}

async fn why_vm(State(context): State<Context>, Path(name): Path<String>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.current(&query).await?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.why_vm(&name)).await?))
}

async fn release_vm(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<ReleaseVm>,
) -> Answer {
    json(StatusCode::OK, &write(context.backend.release_vm(&name, request)).await?)
}

async fn remove_node(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<RemoveNode>,
) -> Answer {
    json(StatusCode::OK, &write(context.backend.remove_node(&name, request)).await?)
}

async fn vm_log(State(context): State<Context>, Path(name): Path<String>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    let nothing_new = |log: &pollux_api::VmLog| log.bytes.is_empty();
    let log = context.until(&query, nothing_new, || context.backend.vm_log(&name, query.from)).await?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
        (HeaderName::from_static(LOG_NEXT_HEADER), HeaderValue::from(log.next)),
    ];
    Ok((headers, log.bytes).into_response())
}

async fn console(
    State(context): State<Context>,
    Path(name): Path<String>,
    query: Result<Query<ConsoleQuery>, QueryRejection>,
    mut request: Request,
) -> Answer {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let protocol = HeaderValue::from_static(PROTOCOL);
    if request.headers().get(header::UPGRADE) != Some(&protocol) {
        return Err(ApiError::invalid(format!("a console is asked for with `Upgrade: {PROTOCOL}`")).into());
    }
    let place = Arc::clone(&context.consoles).try_acquire_owned().map_err(|_| {
        ApiError::unavailable(format!("{CONSOLES_MAX} consoles are attached through this daemon already"))
            .todo("detach one of them, or ask another node")
    })?;
    let mut console = read(context.backend.console(&name, query.start())).await?;
    let upgraded = hyper::upgrade::on(&mut request);
    context.tasks.spawn(context.stop.run_until_cancelled_owned(async move {
        // A client that went away before it had its answer wants no console.
        if let Ok(client) = upgraded.await {
            // Either side may end it at any time; there is nothing to be said about how.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut console).await;
        }
        drop(place);
    }));
    let headers = [(header::CONNECTION, HeaderValue::from_static("upgrade")), (header::UPGRADE, protocol)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn operations(State(context): State<Context>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.current(&query).await?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.operations()).await?))
}

async fn operation(
    State(context): State<Context>,
    Path(id): Path<String>,
    headers: HeaderMap,
    query: Waiting,
) -> Answer {
    let query = query_of(query)?;
    let look = || async {
        context.current(&query).await?;
        context.backend.operation(&id).await
    };
    context.aged(&query, context.unless_same(&headers, &query, look).await)
}

async fn cancel_operation(State(context): State<Context>, Path(id): Path<String>) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.cancel_operation(&id)).await?)
}

async fn no_such_path(request: Request) -> Refused {
    let path = request.uri().path();
    Refused(if path.starts_with("/v1/") {
        ApiError::not_found(format!("the API has no {path}"))
    } else {
        ApiError::not_found(format!("this daemon speaks version 1 of the API (/v1/...), not {path}"))
            .todo("use the `pollux` of the same version as the daemon")
    })
}

async fn no_such_method(method: Method, request: Request) -> Refused {
    Refused(ApiError::invalid(format!("{method} does not go with {}", request.uri().path())))
}

impl Context {
    /// What is read next is current, unless the client is content with less.
    async fn current(&self, query: &ReadQuery) -> Result<(), ApiError> {
        if query.stale { Ok(()) } else { read(self.backend.current()).await }
    }

    /// Says beside an answer that may be old how old it may be.
    fn aged(&self, query: &ReadQuery, answer: Answer) -> Answer {
        let mut answer = answer?;
        if query.stale {
            let age = self.backend.age_ms().map_or(HeaderValue::from_static(AGE_UNKNOWN), HeaderValue::from);
            answer.headers_mut().insert(AGE_HEADER, age);
        }
        Ok(answer)
    }

    /// Read until `idle` says no or the query's time is over, and answer with the last that was read.
    async fn until<T, F>(
        &self,
        query: &ReadQuery,
        idle: impl Fn(&T) -> bool,
        look: impl Fn() -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let end = Instant::now() + Duration::from_millis(query.wait_ms.min(WAIT_MS_MAX));
        // Taken before the first look, so that no change can fall between looking and waiting.
        let mut changes = self.backend.changes();
        loop {
            changes.borrow_and_update();
            let found = read(look()).await?;
            if !idle(&found) || Instant::now() >= end || self.stop.is_cancelled() {
                return Ok(found);
            }
            let again = end.min(Instant::now() + Duration::from_millis(REREAD_MS));
            tokio::select! {
                () = self.stop.cancelled() => {}
                Ok(()) = changes.changed() => {}
                () = time::sleep_until(again) => {}
            }
        }
    }

    /// Answer with what `look` finds, once it differs from what the client has seen; `304` if it does not in time.
    async fn unless_same<T, F>(&self, headers: &HeaderMap, query: &ReadQuery, look: impl Fn() -> F) -> Answer
    where
        T: Serialize,
        F: Future<Output = Result<T, ApiError>>,
    {
        let seen = headers.get(header::IF_NONE_MATCH);
        let look = || async {
            let body = encode(&look().await?)?;
            let tag = tag_of(&body)?;
            Ok((body, tag))
        };
        let same = |found: &(Vec<u8>, HeaderValue)| seen == Some(&found.1);
        let found = self.until(query, same, look).await?;
        if same(&found) {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, found.1)]).into_response());
        }
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (header::ETAG, found.1)];
        Ok((headers, found.0).into_response())
    }
}

/// A read that ends in time.
async fn read<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    time::timeout(Duration::from_millis(REQUEST_MS_MAX), work).await.unwrap_or_else(|_| {
        Err(ApiError::unavailable(format!("no answer within {} s", REQUEST_MS_MAX / 1000))
            .todo("`pollux cluster status` says what is wrong"))
    })
}

/// A change that ends in time. One that does not has an unknown outcome: it may be committed later.
async fn write<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    time::timeout(Duration::from_millis(REQUEST_MS_MAX), work).await.unwrap_or_else(|_| {
        Err(ApiError::unknown(format!(
            "no outcome within {} s: it may or may not have happened",
            REQUEST_MS_MAX / 1000
        ))
        .todo("look (`pollux vm show`, `pollux volume show`, `pollux op list`) before asking again"))
    })
}

fn query_of(query: Waiting) -> Result<ReadQuery, ApiError> {
    query.map(|Query(query)| query).map_err(|error| ApiError::invalid(error.body_text()))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value).map_err(|error| ApiError::internal(format!("the answer does not encode: {error}")))
}

fn tag_of(body: &[u8]) -> Result<HeaderValue, ApiError> {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()))
        .map_err(|error| ApiError::internal(error.to_string()))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let content = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((status, content, encode(value)?).into_response())
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &self.0).unwrap_or_else(|_| status.into_response())
    }
}

/// A JSON body, as [`request::body`] reads it.
struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<Context> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, context: &Context) -> Result<Self, Refused> {
        let read = Bytes::from_request(request, context);
        let bytes = time::timeout(Duration::from_millis(REQUEST_MS_MAX), read)
            .await
            .map_err(|_| ApiError::invalid("the request's body did not come in time"))?
            .map_err(|error| ApiError::invalid(format!("the request's body: {}", error.body_text())))?;
        Ok(Self(request::body(&bytes)?))
    }
}
