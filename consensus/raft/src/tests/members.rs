//! Who votes, who is let go, and what a leader has to say against it.

use pollux_state::{
    id::{Generation, VmId},
    limits::LOST_AFTER_MS,
    vm::{Desired, VmSpec},
};

use super::*;
use crate::{ProposeError, Removal, message::LivenessReply, removal::Objection, types::Member};

/// Longer than a voter may be silent before another node gets its vote.
const PATIENCE: Duration = Duration::from_secs(40);

/// The founder of these clusters has no daemon that ever told of its life.
fn remove(node: u64, heir: u64) -> Command {
    Command::RemoveNode {
        node: NodeId(node),
        after: Incarnation(u64::from(node != 1)),
        heir: NodeId(heir),
        lost: false,
    }
}

/// Waits until `asked` knows that these, and nobody else, vote.
async fn until_vote(cluster: &Cluster, asked: u64, voters: &[u64]) {
    let exactly = |now: &openraft::metrics::RaftServerMetrics<u64, Member>| {
        let membership = now.membership_config.membership();
        membership.get_joint_config().len() == 1 && membership.voter_ids().eq(voters.iter().copied())
    };
    let mut waiting = cluster.node(asked).leadership();
    let seen = timeout(LONG, waiting.wait_for(exactly)).await;
    assert!(seen.is_ok(), "{voters:?} never voted: {:?}", cluster.node(asked).status());
}

async fn try_propose(cluster: &Cluster, by: u64, number: u64, command: Command) -> Result<Outcome, ProposeError> {
    let proposed = cluster.node(by).propose(proposal(number, NodeId(by), command), SOON).await;
    proposed.map(|applied| applied.outcome)
}

/// A VM that node `owner` runs, at generation 1.
async fn run_a_vm(cluster: &mut Cluster, owner: u64) -> VmId {
    let spec = VmSpec {
        name: "web".into(),
        memory_mib: 64,
        vcpus: 1,
        kernel: "/boot/vmlinuz".into(),
        initrd: String::new(),
        append: String::new(),
        nics: Vec::new(),
        machine: "pc-q35-7.2".into(),
        cpu: "qemu64".into(),
        autostart: true,
        disks: Vec::new(),
    };
    let create = Command::CreateVm { spec, home: NodeId(owner), desired: Desired::Running };
    let Outcome::Created(vm) = cluster.propose(owner, create).await.outcome else { panic!("created") };
    let claim = Command::Claim { vm, expect: Generation(0), incarnation: Incarnation(1) };
    assert_eq!(cluster.propose(owner, claim).await.outcome, Outcome::Owned(Generation(1)));
    vm
}

#[tokio::test(start_paused = true)]
async fn of_two_nodes_one_votes_and_of_five_all() {
    let two = Cluster::of(2).await;
    tokio::time::sleep(SOON).await;
    assert_eq!(two.node(2).status().voters, [NodeId(1)]);
    two.kill(2).await;
    let alone = two.node(1).propose(token(42, NodeId(1)), SOON).await;
    assert!(alone.is_ok(), "the second of two nodes is no loss: {alone:?}");

    let five = Cluster::of(5).await;
    five.kill(1).await;
    five.kill(2).await;
    five.node(4).propose(token(42, NodeId(4)), LONG).await.expect("two of five may be lost");
}

#[tokio::test(start_paused = true)]
async fn a_dead_voter_is_replaced_and_does_not_get_its_vote_back() {
    let cluster = Cluster::of(4).await;
    let survivor = if leads(&cluster.node(2)) { 3 } else { 2 };
    let (dead, stays) = (if survivor == 2 { 3 } else { 2 }, survivor);
    assert!(!leads(&cluster.node(dead)));
    cluster.kill(dead).await;

    tokio::time::sleep(SOON).await;
    let voters = cluster.node(stays).status().voters;
    assert!(voters.contains(&NodeId(dead)), "it may be back in a moment: {voters:?}");
    until_vote(&cluster, stays, &[1, stays, 4]).await;

    // Now another one may be lost, which would have been one too many.
    cluster.start(dead).await;
    cluster.kill(stays).await;
    cluster.node(4).propose(token(42, NodeId(4)), LONG).await.expect("two of three voters live");
    // And so the one that came back gets that one's vote.
    until_vote(&cluster, 4, &[1, dead.min(4), dead.max(4)]).await;
}

#[tokio::test(start_paused = true)]
async fn hosts_that_come_and_go_by_turns_do_not_have_the_votes_passed_round_for_ever() {
    let cluster = Cluster::of(4).await;
    let terms = cluster.node(1).status().term;
    let mut sets = std::collections::BTreeSet::new();
    let mut changes = 0;
    for round in 0..12 {
        let voters = cluster.node(1).status().voters;
        let victim = voters.iter().find(|node| **node != NodeId(1)).copied().unwrap();
        cluster.kill(victim.0).await;
        tokio::time::sleep(PATIENCE).await;
        changes += usize::from(cluster.node(1).status().voters != voters);
        cluster.start(victim.0).await;
        tokio::time::sleep(SOON).await;
        sets.insert(cluster.node(1).status().voters.clone());
        assert!(cluster.node(1).status().voters.len() == 3, "round {round}");
    }
    assert!((1..8).contains(&changes), "{changes} changes in 12 rounds");
    assert_eq!(cluster.node(1).status().term, terms, "nobody stood for election meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_removed_learns_of_it_loses_its_vote_and_is_never_heard_again() {
    let mut cluster = Cluster::of(4).await;
    let gone = cluster.node(3);
    let (learned, let_go) = {
        let (waiting, gone) = (gone.clone(), gone.clone());
        let removed = async move { (waiting.removed().await, gone.let_go(LONG).await) };
        tokio::join!(removed, cluster.propose(2, remove(3, 1))).0
    };
    assert_eq!((learned, let_go), (Removal::Decided, true));
    until_vote(&cluster, 1, &[1, 2, 4]).await;
    let known = |node: u64| cluster.node(node).status().learners.contains(&NodeId(3));
    let mut left = LONG.as_millis();
    while known(1) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        left = left.checked_sub(100).expect("it was never let go");
    }
    assert!(!cluster.node(1).admits(NodeId(3)) && cluster.node(1).admits(NodeId(2)));

    // Its own word counts for nothing, whichever way it comes, also after all others started again.
    for node in [1, 2, 4] {
        cluster.kill(node).await;
    }
    for node in [1, 2, 4] {
        cluster.start(node).await;
    }
    cluster.node(1).linearizable(LONG).await.unwrap();
    let life = Command::StartIncarnation { after: Incarnation(1), address: address(3), facts: Facts::default() };
    let refused = try_propose(&cluster, 3, 900, life.clone()).await;
    assert!(matches!(refused, Err(ProposeError::NoLeader { .. } | ProposeError::Unknown { .. })), "{refused:?}");
    let forged = crate::message::ProposeRequest { proposal: proposal(901, NodeId(3), life), wait_ms: 1_000 };
    let body = crate::encoding::encode(&forged).unwrap();
    for node in [1, 2, 4] {
        let _ = cluster.node(node).answer(NodeId(3), pollux_wire::method::PROPOSE, &body).await;
        assert!(!cluster.node(node).admits(NodeId(3)), "node {node} forgot it");
    }
    cluster.node(1).linearizable(SOON).await.unwrap();
    let state = cluster.node(1).watch().borrow().state.clone();
    assert!(state.is_removed(NodeId(3)) && !state.nodes.contains_key(&NodeId(3)));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_cut_off_when_it_was_removed_is_told_by_whoever_it_asks() {
    let mut cluster = Cluster::of(3).await;
    cluster.wires.isolate(NodeId(3));
    cluster.propose(1, remove(3, 1)).await;
    until_vote(&cluster, 2, &[1]).await;
    tokio::time::sleep(SOON).await;
    let outcast = cluster.node(3);
    assert!(timeout(SOON, outcast.removed()).await.is_err(), "it cannot know yet");

    cluster.wires.heal();
    let told = timeout(LONG, outcast.removed()).await.expect("nobody tells it");
    assert!(matches!(told, Removal::Told(_)), "{told:?}");
    assert!(!outcast.watch().borrow().state.is_removed(NodeId(3)), "the log does not reach it any more");
}

#[tokio::test(start_paused = true)]
async fn a_leader_is_removed_and_the_others_go_on() {
    for size in [2, 3, 4, 5] {
        let mut cluster = Cluster::of(size).await;
        assert!(leads(&cluster.node(1)));
        // Until the others have the log.
        tokio::time::sleep(SOON).await;
        let removed = cluster.propose(1, remove(1, 2)).await;
        assert_eq!(removed.outcome, Outcome::Done);
        assert!(cluster.node(1).let_go(LONG).await, "of {size}, it still votes: {:?}", cluster.node(1).status());

        cluster.kill(1).await;
        let others: Vec<u64> = (2..=size).collect();
        cluster.until_led_by_one_of(&others).await;
        cluster.node(2).propose(token(42, NodeId(2)), LONG).await.expect("the others decide");
        let wanted = crate::voters_of(others.len());
        until_vote(&cluster, 2, &others[..wanted]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_in_the_middle_of_its_removal_is_let_go_by_the_next() {
    let mut cluster = Cluster::of(4).await;
    cluster.propose(1, remove(1, 2)).await;
    cluster.kill(1).await;
    until_vote(&cluster, 2, &[2, 3, 4]).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_removed_at_the_cost_of_the_quorum() {
    let cluster = Cluster::of(2).await;
    cluster.kill(2).await;
    tokio::time::sleep(SOON).await;

    let refused = try_propose(&cluster, 1, 900, remove(1, 2)).await;
    assert!(
        matches!(&refused, Err(ProposeError::Refused { why, .. }) if why.contains("nobody could decide")),
        "{refused:?}"
    );
    assert!(!cluster.node(1).watch().borrow().state.is_removed(NodeId(1)));

    assert_eq!(try_propose(&cluster, 1, 901, remove(2, 1)).await.unwrap(), Outcome::Done, "the dead one may go");
}

/// Each of the two may go, for the other is left; not both.
#[tokio::test(start_paused = true)]
async fn nobody_is_removed_at_the_cost_of_the_quorum_also_when_two_are_at_once() {
    let cluster = Cluster::of(3).await;
    cluster.kill(3).await;
    tokio::time::sleep(SOON).await;

    let both = tokio::join!(try_propose(&cluster, 1, 900, remove(1, 3)), try_propose(&cluster, 1, 901, remove(2, 3)));
    let done = [&both.0, &both.1].into_iter().filter(|outcome| matches!(outcome, Ok(Outcome::Done))).count();
    assert_eq!(done, 1, "{both:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vm_is_released_only_while_the_leader_counts_its_host_dead() {
    let mut cluster = Cluster::of(3).await;
    let vm = run_a_vm(&mut cluster, 3).await;
    let release = release_lost(vm);

    let alive = try_propose(&cluster, 2, 900, release.clone()).await;
    assert!(
        matches!(&alive, Err(ProposeError::Refused { why, .. }) if why.contains("n3") && why.contains("is alive")),
        "{alive:?}"
    );
    let busy = cluster.propose(1, remove(3, 1)).await.outcome;
    assert!(matches!(&busy, Outcome::Refused(why) if why.to_string().contains("VM web")), "{busy:?}");

    let lost = Command::RemoveNode { node: NodeId(2), after: Incarnation(1), heir: NodeId(1), lost: true };
    let given_up = try_propose(&cluster, 1, 899, lost).await;
    assert!(matches!(&given_up, Err(ProposeError::Refused { why, .. }) if why.contains("is alive")), "{given_up:?}");

    cluster.kill(3).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let overdue = try_propose(&cluster, 2, 901, release.clone()).await;
    assert!(
        matches!(&overdue, Err(ProposeError::Refused { why, .. }) if why.contains("may still be heard: try again in")),
        "{overdue:?}"
    );

    // Dead it counts long before; but one that only slept could still be heard.
    tokio::time::sleep(Duration::from_millis(LOST_AFTER_MS - 3_000)).await;
    let asleep = try_propose(&cluster, 2, 902, release.clone()).await;
    assert!(matches!(&asleep, Err(ProposeError::Refused { why, .. }) if why.contains("try again in")), "{asleep:?}");

    tokio::time::sleep(Duration::from_millis(3_000)).await;
    assert_eq!(try_propose(&cluster, 2, 903, release).await.unwrap(), Outcome::Owned(Generation(2)));
    assert_eq!(cluster.propose(1, remove(3, 1)).await.outcome, Outcome::Done);
}

fn release_lost(vm: VmId) -> Command {
    Command::ReleaseLost { vm, expect: Generation(1), operator: "carol".into() }
}

/// It led before, and another did since; its list is of before, and its task has not put it away yet.
#[tokio::test(start_paused = true)]
async fn what_a_leader_heard_in_an_earlier_term_gives_nobody_up() {
    let mut cluster = Cluster::of(3).await;
    let vm = run_a_vm(&mut cluster, 3).await;
    tokio::time::sleep(Duration::from_millis(LOST_AFTER_MS)).await;
    let leader = cluster.node(1);
    let term = leader.status().term;
    leader.ear().keep_list_of(term - 1, (1..=3).map(NodeId));

    let said = leader.liveness_here(SOON).await;
    assert!(matches!(&said, LivenessReply::NotNow { .. }), "{said:?}");
    let given_up = try_propose(&cluster, 1, 900, release_lost(vm)).await;
    assert!(matches!(&given_up, Err(ProposeError::Refused { why, .. }) if why.contains("is alive")), "{given_up:?}");

    // And with the same list of its own term: the control.
    leader.ear().keep_list_of(term, (1..=3).map(NodeId));
    assert_eq!(try_propose(&cluster, 1, 901, release_lost(vm)).await.unwrap(), Outcome::Owned(Generation(2)));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_slept_gives_nobody_up() {
    let mut cluster = Cluster::of(3).await;
    let vm = run_a_vm(&mut cluster, 3).await;
    let leader = cluster.node(1);
    let term = leader.status().term;
    tokio::time::sleep(Duration::from_secs(1)).await;

    tokio::time::advance(Duration::from_secs(60)).await;

    let objection = leader.objection(term, &proposal(900, NodeId(1), release_lost(vm)));
    assert!(matches!(&objection, Some(Objection::No(why)) if why.contains("is alive")), "{objection:?}");
}

#[tokio::test(start_paused = true)]
async fn elections_are_counted_and_a_quiet_cluster_has_none() {
    let cluster = Cluster::of(3).await;
    tokio::time::sleep(LONG).await;
    let quiet = |node: u64| cluster.node(node).status().counts;
    let before = [quiet(2), quiet(3)];
    tokio::time::sleep(LONG).await;
    assert_eq!([quiet(2), quiet(3)], before);

    cluster.kill(1).await;
    let leader = cluster.until_led_by_one_of(&[2, 3]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = [quiet(2), quiet(3)];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.leader_changes, before.leader_changes + 1);
        assert!(after.terms > before.terms);
    }
    let winner = usize::from(leader == NodeId(3));
    assert!(after[winner].elections > before[winner].elections);
}

#[tokio::test(start_paused = true)]
async fn a_node_says_how_long_it_has_been_out_of_touch() {
    let cluster = Cluster::of(3).await;
    cluster.node(3).linearizable(SOON).await.unwrap();
    tokio::time::sleep(SOON).await;
    for node in [1, 3] {
        let touched = cluster.node(node).touched().expect("it was in touch");
        assert!(touched < Duration::from_secs(1), "node {node}: {touched:?}");
    }

    for node in [1, 3] {
        cluster.wires.isolate(NodeId(node));
    }
    tokio::time::sleep(LONG).await;
    for node in [1, 3] {
        let touched = cluster.node(node).touched().expect("it was in touch");
        assert!((LONG..LONG + SOON).contains(&touched), "node {node}: {touched:?}");
    }
}
