//! Calls about pools and volumes.

use std::time::Duration;

use axum::body::Bytes;
use hyper::Method;
use pollux_api::{
    AddPool, AddReplica, ApiError, AttachVolume, CreateVolume, DeleteVolume, ExportVolume, GrowVolume, ImportVolume,
    MoveVolume, OperationView, PoolView, TransferView, VerificationView, VerifyVolume, VolumeView, request::segment,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Client, Tagged, parse};

impl Client {
    /// All pools.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn pools(&self) -> Result<Vec<PoolView>, ApiError> {
        self.get("/v1/pools").await
    }

    /// Make a directory a pool.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn add_pool(&self, request: &AddPool) -> Result<PoolView, ApiError> {
        self.post("/v1/pools", request).await
    }

    /// Forget a pool, `NODE:POOL`, without replicas.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn remove_pool(&self, place: &str) -> Result<PoolView, ApiError> {
        self.delete(&format!("/v1/pools/{}", segment(place)), &serde_json::json!({})).await
    }

    /// All volumes.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn volumes(&self) -> Result<Vec<VolumeView>, ApiError> {
        self.get("/v1/volumes").await
    }

    /// One volume.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn volume(&self, name: &str) -> Result<VolumeView, ApiError> {
        self.get(&of(name, "")).await
    }

    /// One volume, once it differs from `seen` or `wait` is over, whichever comes first.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn volume_after(
        &self,
        name: &str,
        seen: Option<&Tagged<VolumeView>>,
        wait: Duration,
    ) -> Result<Tagged<VolumeView>, ApiError> {
        self.get_after(&of(name, ""), seen, wait).await
    }

    /// Create a volume.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn create_volume(&self, request: &CreateVolume) -> Result<VolumeView, ApiError> {
        self.post("/v1/volumes", request).await
    }

    /// Let a volume become larger.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn grow_volume(&self, name: &str, request: &GrowVolume) -> Result<VolumeView, ApiError> {
        self.post(&of(name, "/grow"), request).await
    }

    /// Forget a volume.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn delete_volume(&self, name: &str, request: &DeleteVolume) -> Result<VolumeView, ApiError> {
        self.delete(&of(name, ""), request).await
    }

    /// Give a volume to a stopped VM.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn attach_volume(&self, name: &str, request: &AttachVolume) -> Result<VolumeView, ApiError> {
        self.post(&of(name, "/attach"), request).await
    }

    /// Take a volume away from its VM.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn detach_volume(&self, name: &str) -> Result<VolumeView, ApiError> {
        self.post(&of(name, "/detach"), &serde_json::json!({})).await
    }

    /// A replica of a volume takes another's place.
    ///
    /// # Errors
    /// The daemon's, or that it does not answer.
    pub async fn move_volume(&self, name: &str, request: &MoveVolume) -> Result<OperationView, ApiError> {
        self.post(&of(name, "/move"), request).await
    }

    /// One more replica of a volume.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn add_replica(&self, name: &str, request: &AddReplica) -> Result<VolumeView, ApiError> {
        self.post(&of(name, "/replicas"), request).await
    }

    /// Forget the replica of a volume in a pool, `NODE:POOL`.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn remove_replica(&self, name: &str, place: &str) -> Result<VolumeView, ApiError> {
        self.delete(&of(name, &format!("/replicas/{}", segment(place))), &serde_json::json!({})).await
    }

    /// Begin to make a volume of a file of the daemon's node.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn import_volume(&self, name: &str, request: &ImportVolume) -> Result<TransferView, ApiError> {
        self.post(&of(name, "/import"), request).await
    }

    /// Begin to make a file on the daemon's node of a volume.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn export_volume(&self, name: &str, request: &ExportVolume) -> Result<TransferView, ApiError> {
        self.post(&of(name, "/export"), request).await
    }

    /// An import or an export, once it differs from `seen` or `wait` is over, whichever comes first.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn transfer_after(
        &self,
        id: u64,
        seen: Option<&Tagged<TransferView>>,
        wait: Duration,
    ) -> Result<Tagged<TransferView>, ApiError> {
        self.get_after(&format!("/v1/transfers/{id}"), seen, wait).await
    }

    /// Begin to compare the replicas of a volume.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn verify_volume(&self, name: &str, request: &VerifyVolume) -> Result<VerificationView, ApiError> {
        self.post(&of(name, "/verify"), request).await
    }

    /// A comparison, once it differs from `seen` or `wait` is over, whichever comes first.
    ///
    /// # Errors
    /// As [`Self::cluster`].
    pub async fn verification_after(
        &self,
        (node, id): (&str, &str),
        seen: Option<&Tagged<VerificationView>>,
        wait: Duration,
    ) -> Result<Tagged<VerificationView>, ApiError> {
        self.get_after(&format!("/v1/verifications/{}/{}", segment(node), segment(id)), seen, wait).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).map_err(|error| ApiError::internal(format!("the request: {error}")))?;
        parse(&self.ask(Method::DELETE, path, Bytes::from(body), None, Duration::ZERO).await?)
    }
}

fn of(volume: &str, more: &str) -> String {
    format!("/v1/volumes/{}{more}", segment(volume))
}
