//! How a state directory comes to belong to a node: by founding a cluster, or by joining one.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use pollux_link::{
    Authority, AuthorityError, Fingerprint, Identity, IdentityError, JoinError, NodeKey, Role, Token, TokenError,
};
use pollux_state::{
    Command, Proposal,
    id::{ClusterId, NodeId},
};
use serde::Serialize;

use super::dir::{self, Dir, DirError, NodeFile};
use crate::vm::{Minter, wall_ms};

/// The node that founds a cluster is its first.
pub(super) const FIRST_NODE: NodeId = NodeId(1);
/// How long joining may take, in milliseconds.
const JOIN_MS_MAX: u64 = 20_000;

/// What founding a cluster made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitReport {
    /// The cluster's identity.
    pub cluster: String,
    /// The first node's name.
    pub node: String,
    /// Where it will listen.
    pub listen: SocketAddr,
    /// SHA-256 of the CA's certificate.
    pub ca: String,
    /// Where all this is kept.
    pub dir: PathBuf,
}

/// No cluster was founded.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The directory belongs to a node already.
    #[error("{0} belongs to a node already; choose another directory, or remove it if that node is no more")]
    Used(PathBuf),
    /// An address nobody could reach.
    #[error(
        "{0} cannot be listened on by name of others: give this host's own address and a port, such as 10.0.0.1:7700"
    )]
    Listen(SocketAddr),
    /// The directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The CA.
    #[error("the cluster's CA could not be made: {0}")]
    Authority(#[from] AuthorityError),
    /// The first node's identity.
    #[error("the node's identity could not be kept: {0}")]
    Identity(#[from] IdentityError),
}

/// Founds a cluster whose first node is this one: makes its CA and its first node's identity. The daemon does the rest when
/// it first runs. Half a directory is never taken for a whole one: `node.json` comes last.
///
/// # Errors
/// [`InitError`]; then the directory can be used again.
pub fn init(path: &Path, name: &str, listen: SocketAddr) -> Result<InitReport, InitError> {
    let dir = Dir::open(path);
    if dir.is_used() {
        return Err(InitError::Used(path.to_owned()));
    }
    if listen.ip().is_unspecified() || listen.port() == 0 {
        return Err(InitError::Listen(listen));
    }
    let dir = Dir::make(path)?;
    dir.clear_unfinished_founding()?;
    let minter = Minter::random();
    let cluster = ClusterId(minter.mint().0);
    let authority = Authority::create(cluster)?;
    let identity = authority.identity(FIRST_NODE, name, Role::Member)?;
    authority.save(&dir.authority())?;
    identity.save(&dir.identity())?;
    let key = key_hash(identity.public_key());
    let command = Command::Found { cluster, name: name.to_owned(), address: listen, key };
    let founding = Proposal { id: minter.mint(), by: FIRST_NODE, at: wall_ms(), command };
    dir::write_json(&dir.founding(), &founding)?;
    dir::write_json(&dir.node_file(), &NodeFile::new(listen))?;
    Ok(InitReport {
        cluster: cluster.to_string(),
        node: name.to_owned(),
        listen,
        ca: authority.fingerprint().to_string(),
        dir: path.to_owned(),
    })
}

/// What joining a cluster made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JoinReport {
    /// The cluster's identity.
    pub cluster: String,
    /// This node's name.
    pub node: String,
    /// Its number.
    pub id: u64,
    /// Where it will listen.
    pub listen: SocketAddr,
    /// Where all this is kept.
    pub dir: PathBuf,
}

/// The node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinRefused {
    /// The directory belongs to a node already.
    #[error("{0} belongs to a node already; choose another directory, or remove it if that node is no more")]
    Used(PathBuf),
    /// An address nobody could reach.
    #[error("{0} cannot be reached by others: give this host's own address and a port, such as 10.0.0.2:7700")]
    Listen(SocketAddr),
    /// The token is not one.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The cluster said no, or did not answer.
    #[error("{0}")]
    Join(#[from] JoinError),
    /// Its key, or the identity it was given.
    #[error("the node's key and identity could not be kept: {0}")]
    Identity(#[from] IdentityError),
}

/// Joins the cluster that made `token`.
///
/// # Errors
/// [`JoinRefused`]; then the directory can be used again. Unless it says otherwise the token can be, too.
pub async fn join(path: &Path, token: &str, listen: SocketAddr) -> Result<JoinReport, JoinRefused> {
    let dir = Dir::open(path);
    if dir.is_used() {
        return Err(JoinRefused::Used(path.to_owned()));
    }
    if listen.ip().is_unspecified() || listen.port() == 0 {
        return Err(JoinRefused::Listen(listen));
    }
    let token: Token = token.trim().parse()?;
    let dir = Dir::make(path)?;
    let identity = match Identity::load(&dir.identity()) {
        // It was admitted, and could not note down where it listens.
        Ok(known) if known.cluster() == token.cluster && known.name() == token.node_name => known,
        Ok(_) | Err(_) => ask_to_join(&dir, &token, listen).await?,
    };
    dir::write_json(&dir.node_file(), &NodeFile::new(listen))?;
    dir.forget_joining()?;
    Ok(JoinReport {
        cluster: identity.cluster().to_string(),
        node: identity.name().to_owned(),
        id: identity.node().0,
        listen,
        dir: path.to_owned(),
    })
}

async fn ask_to_join(dir: &Dir, token: &Token, listen: SocketAddr) -> Result<Identity, JoinRefused> {
    let key = NodeKey::kept(&dir.joining_key(token))?;
    let deadline = Duration::from_millis(JOIN_MS_MAX);
    let joined = pollux_link::join(token, &token.node_name, listen, &key, deadline).await?;
    joined.identity.save(&dir.identity())?;
    Ok(joined.identity)
}

/// What the cluster's state knows of a node's key.
pub(super) fn key_hash(public: &[u8]) -> [u8; 32] {
    Fingerprint::of(public).0
}
