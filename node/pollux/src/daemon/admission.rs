//! Admitting a node that shows a token: the log decides, the CA's key signs.

use std::time::Duration;

use pollux_link::{Authority, Fault, Role, Token, request_key};
use pollux_raft::{Consensus, ProposeError};
use pollux_state::{Command, Outcome, Proposal, Refusal, TokenRefusal, id::NodeId};
use pollux_wire::{
    fault,
    join::{JoinReply, JoinRequest},
};

use super::founding::key_hash;
use crate::vm::{Minter, wall_ms};

/// How long the cluster may take to decide, in milliseconds.
const DECIDE_MS_MAX: u64 = 8_000;

pub(super) async fn admit(
    consensus: &Consensus,
    authority: Option<&Authority>,
    minter: &Minter,
    by: NodeId,
    request: JoinRequest,
) -> Result<JoinReply, Fault> {
    let Some(authority) = authority else {
        return Err(Fault::new(fault::ASK_ANOTHER, "this node does not hold the cluster's CA key; ask one that does"));
    };
    let key = request_key(&request.signing_request).map_err(Fault::malformed)?;
    let command = Command::Join {
        secret_hash: Token::hash(&request.secret),
        name: request.name.clone(),
        address: request.address,
        key: key_hash(&key),
    };
    let proposal = Proposal { id: minter.mint(), by, at: wall_ms(), command };
    let applied =
        consensus.propose(proposal, Duration::from_millis(DECIDE_MS_MAX)).await.map_err(|error| undecided(&error))?;
    let outcome = applied.outcome.done().map_err(|refusal| refused(&refusal))?;
    let Outcome::Joined(node) = outcome else {
        return Err(Fault::internal(format!("the cluster answered a join with {outcome:?}")));
    };
    let certificate = authority
        .issue(node, &request.name, Role::Member, &request.signing_request)
        .map_err(|error| Fault::internal(error.to_string()))?;
    tracing::info!(%node, name = request.name, address = %request.address, "a node joined");
    let state = consensus.watch().borrow().state.clone();
    let members = state.nodes.values().filter(|member| member.id != node).map(|member| (member.id, member.address));
    Ok(JoinReply {
        cluster: authority.cluster(),
        node,
        certificate,
        ca: authority.certificate().to_vec(),
        members: members.collect(),
    })
}

fn refused(refusal: &Refusal) -> Fault {
    let Refusal::Token(why) = refusal else { return Fault::new(fault::SERVICE_FIRST, refusal.to_string()) };
    let code = match why {
        TokenRefusal::Unknown | TokenRefusal::InUse => fault::TOKEN_UNKNOWN,
        TokenRefusal::OtherName { .. } => fault::TOKEN_NAME,
        TokenRefusal::Used { .. } => fault::TOKEN_USED,
        TokenRefusal::Expired => fault::TOKEN_EXPIRED,
    };
    Fault::new(code, refusal.to_string())
}

fn undecided(error: &ProposeError) -> Fault {
    if error.is_unknown() {
        Fault::new(fault::JOIN_UNDECIDED, format!("it is not known whether the node was admitted: {error}"))
    } else {
        Fault::new(fault::ASK_ANOTHER, format!("the cluster could not decide: {error}"))
    }
}
