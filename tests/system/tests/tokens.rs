//! Who gets in: a host with a token of this cluster, once, in time, under the name it was made for. Nobody else, and an attempt
//! harms nothing.

use std::{
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use pollux_link::Token;
use pollux_system_tests::{
    World,
    cli::exit,
    waiting::{SETTLE, until},
};
use serde::Deserialize;

/// Where a further daemon on n3 would listen, beside the one that is there.
const BESIDE_N3: &str = "10.77.0.3:7799";

#[derive(Deserialize)]
struct MadeToken {
    token: String,
    node: String,
}

fn token(world: &World, name: &str, ttl: &str) -> Token {
    let made: MadeToken = world.pollux("n2", &["cluster", "token", "--node", name, "--ttl", ttl]).json();
    assert_eq!(made.node, name);
    made.token.parse().expect("what `cluster token` prints is a token")
}

#[test]
fn only_a_token_of_this_cluster_admits_and_only_once_in_time_and_by_its_name() {
    let world = World::start(3);
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let mut attempt = 0;
    let mut join = |token: &str| {
        attempt += 1;
        let directory = scratch.path().join(attempt.to_string());
        let directory = directory.to_str().expect("a path in UTF-8");
        world.pollux("n3", &["node", "join", "--token", token, "--listen", BESIDE_N3, "--dir", directory])
    };

    // What is no token never leaves this host.
    for garbage in ["", "hello", "pollux1.", "pollux1.AAAA", "pollux1.not base64!"] {
        join(garbage).refused(exit::USAGE, &["token"]);
    }
    let good = token(&world, "leda", "1h");
    let text = good.to_string();
    join(&text[..text.len() - 3]).refused(exit::USAGE, &["token", "checksum"]);

    // Made for another name.
    let mut renamed = good.clone();
    renamed.0.node_name = "helena".to_owned();
    join(&renamed.to_string()).refused(exit::CONFLICT, &["leda"]);

    // Of another cluster: the secret is not sent.
    let mut stranger = good.clone();
    stranger.0.ca_fingerprint[0] ^= 1;
    join(&stranger.to_string()).refused(exit::CONFLICT, &["authority", "not sent"]);

    // Of no cluster at all.
    let mut forged = good.clone();
    forged.0.secret[0] ^= 1;
    join(&forged.to_string()).refused(exit::CONFLICT, &["token"]);

    // Too late.
    let late = token(&world, "late", "1s");
    until("the token to expire", SETTLE, || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
        if now > late.expires_unix_s { Ok(()) } else { Err(format!("{now} s")) }
    });
    join(&late.to_string()).refused(exit::CONFLICT, &["expired"]);

    // None is made for a name that is taken, or that is none.
    world.pollux("n1", &["cluster", "token", "--node", "n2"]).refused(exit::CONFLICT, &["n2", "taken"]);
    world.pollux("n1", &["cluster", "token", "--node", "Not A Name"]).refused(exit::USAGE, &["Not A Name"]);

    // After all of that the cluster is as it was.
    world.healthy();
    assert_eq!(world.cluster("n1").nodes.len(), 3);

    // And the real one works, once.
    let _ = join(&good.to_string()).code(exit::OK);
    join(&good.to_string()).refused(exit::CONFLICT, &["used"]);
    assert_eq!(world.cluster("n1").nodes.len(), 4);
}

#[test]
fn a_daemon_of_another_cluster_in_the_place_of_a_node_is_not_talked_to() {
    let world = World::start(3);
    let before = world.cluster("n1");
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let directory = scratch.path().join("state");
    let address = before.nodes.iter().find(|node| node.name == "n3").expect("n3").address.clone();

    // A cluster of its own, whose only node has the name and the address of n3.
    world.kill("n3");
    let directory_text = directory.to_str().expect("a path in UTF-8");
    let founding = ["cluster", "init", "--name", "n3", "--listen", &address, "--dir", directory_text];
    let _ = world.pollux("n3", &founding).code(exit::OK);
    let impostor = Impostor::start(&world, &directory, &scratch.path().join("api.sock"));

    until("n1 to count the real n3 out", SETTLE, || {
        let node = world.node("n1", "n3");
        if node.health == "down" { Ok(()) } else { Err(format!("{node:?}")) }
    });
    let during = world.cluster("n1");
    assert!(during.quorum && during.leader.is_some(), "two of three go on: {during:?}");
    assert_eq!(during.id, before.id);
    assert!(impostor.lives(), "the other cluster is not harmed either");
    drop(impostor);

    world.start_again("n3");
    world.healthy();
    assert_eq!(world.cluster("n3").id, before.id);
}

/// A daemon that the lab knows nothing of. It ends with the story.
struct Impostor(Child);

impl Impostor {
    fn start(world: &World, directory: &Path, socket: &Path) -> Self {
        let (directory, path) = (directory.to_str().expect("UTF-8"), socket.to_str().expect("UTF-8"));
        let mut command = world.command("n3", &["--socket", path, "node", "run", "--dir", directory]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let impostor = Self(command.spawn().expect("the impostor starts"));
        until("the impostor to answer", Duration::from_secs(30), || {
            let answer = world.pollux("n3", &["--socket", path, "cluster", "status"]);
            if answer.code == exit::OK { Ok(()) } else { Err(format!("{answer:?}")) }
        });
        impostor
    }

    fn lives(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.is_empty())
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
