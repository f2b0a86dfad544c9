//! Paths about pools and volumes.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{delete, get, post},
};
use pollux_api::{
    AddPool, AddReplica, ApiError, AttachVolume, CreateVolume, DeleteVolume, ExportVolume, GrowVolume, ImportVolume,
    MoveVolume, VerifyVolume,
};

use super::{Answer, Body, Context, Waiting, json, query_of, read, write};

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/pools", get(pools).post(add_pool))
        .route("/v1/pools/{place}", delete(remove_pool))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{name}", get(volume).delete(delete_volume))
        .route("/v1/volumes/{name}/grow", post(grow_volume))
        .route("/v1/volumes/{name}/move", post(move_volume))
        .route("/v1/volumes/{name}/attach", post(attach_volume))
        .route("/v1/volumes/{name}/detach", post(detach_volume))
        .route("/v1/volumes/{name}/import", post(import_volume))
        .route("/v1/volumes/{name}/export", post(export_volume))
        .route("/v1/transfers/{id}", get(transfer))
        .route("/v1/volumes/{name}/verify", post(verify_volume))
        .route("/v1/verifications/{node}/{id}", get(verification))
        .route("/v1/volumes/{name}/replicas", post(add_replica))
        .route("/v1/volumes/{name}/replicas/{place}", delete(remove_replica))
}

async fn pools(State(context): State<Context>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.current(&query).await?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.pools()).await?))
}

async fn add_pool(State(context): State<Context>, Body(request): Body<AddPool>) -> Answer {
    json(StatusCode::CREATED, &write(context.backend.add_pool(request)).await?)
}

async fn remove_pool(State(context): State<Context>, Path(place): Path<String>) -> Answer {
    json(StatusCode::OK, &write(context.backend.remove_pool(&place)).await?)
}

async fn volumes(State(context): State<Context>, query: Waiting) -> Answer {
    let query = query_of(query)?;
    context.current(&query).await?;
    context.aged(&query, json(StatusCode::OK, &read(context.backend.volumes()).await?))
}

async fn volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    headers: HeaderMap,
    query: Waiting,
) -> Answer {
    let query = query_of(query)?;
    let look = || async {
        context.current(&query).await?;
        context.backend.volume(&name).await
    };
    context.aged(&query, context.unless_same(&headers, &query, look).await)
}

async fn create_volume(State(context): State<Context>, Body(request): Body<CreateVolume>) -> Answer {
    json(StatusCode::CREATED, &write(context.backend.create_volume(request)).await?)
}

async fn grow_volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<GrowVolume>,
) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.grow_volume(&name, request)).await?)
}

async fn delete_volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<DeleteVolume>,
) -> Answer {
    json(StatusCode::OK, &write(context.backend.delete_volume(&name, request)).await?)
}

async fn attach_volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<AttachVolume>,
) -> Answer {
    json(StatusCode::OK, &write(context.backend.attach_volume(&name, request)).await?)
}

async fn detach_volume(State(context): State<Context>, Path(name): Path<String>) -> Answer {
    json(StatusCode::OK, &write(context.backend.detach_volume(&name)).await?)
}

async fn import_volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<ImportVolume>,
) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.import_volume(&name, request)).await?)
}

async fn export_volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<ExportVolume>,
) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.export_volume(&name, request)).await?)
}

/// This node's own: no quorum is asked.
async fn transfer(
    State(context): State<Context>,
    Path(id): Path<String>,
    headers: HeaderMap,
    query: Waiting,
) -> Answer {
    let query = query_of(query)?;
    let none = || {
        ApiError::not_found(format!("this daemon knows no transfer {id}")).todo("it may have been started again since")
    };
    let id = id.parse::<u64>().map_err(|_| none())?;
    context.unless_same(&headers, &query, || context.backend.transfer(id)).await
}

async fn verify_volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<VerifyVolume>,
) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.verify_volume(&name, request)).await?)
}

/// That node's own: no quorum is asked.
async fn verification(
    State(context): State<Context>,
    Path((node, id)): Path<(String, String)>,
    headers: HeaderMap,
    query: Waiting,
) -> Answer {
    let query = query_of(query)?;
    context.unless_same(&headers, &query, || context.backend.verification(&node, &id)).await
}

async fn move_volume(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<MoveVolume>,
) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.move_volume(&name, request)).await?)
}

async fn add_replica(
    State(context): State<Context>,
    Path(name): Path<String>,
    Body(request): Body<AddReplica>,
) -> Answer {
    json(StatusCode::ACCEPTED, &write(context.backend.add_replica(&name, request)).await?)
}

async fn remove_replica(State(context): State<Context>, Path((name, place)): Path<(String, String)>) -> Answer {
    json(StatusCode::OK, &write(context.backend.remove_replica(&name, &place)).await?)
}
