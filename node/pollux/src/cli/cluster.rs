//! `pollux cluster`: the cluster as a whole.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use pollux_api::{ClusterView, TokenRequest, TokenView};

use crate::{
    api::DEFAULT_DIR,
    daemon::{self, InitError, InitReport},
};

use super::{
    Context,
    exit::{Exit, Failure},
    node,
    output::{Format, list, note, show, span},
};

/// Verbs about the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Found a cluster with this host as its first node. Works without a daemon; then `pollux node run`.
    #[command(after_help = "Example:\n  pollux cluster init --name n1 --listen 192.0.2.11:7700 && pollux node run")]
    Init(Init),
    /// Make a token with which one host can join, once, under one name.
    #[command(after_help = "Example:\n  pollux cluster token --node n2 --ttl 1h")]
    Token(Token),
    /// Whether the cluster is well, and what to do if it is not.
    Status,
}

/// How a cluster is founded.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The first node's name: 1 to 40 of `a-z 0-9 -`, starting with a letter.
    #[arg(long)]
    pub(crate) name: String,
    /// Where this node's daemon will listen (UDP): an address the other nodes reach.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Where the node keeps its identity, log and keys.
    #[arg(long, env = "POLLUX_DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
}

/// How a token is made.
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// The name that the node which uses it will have.
    #[arg(long, value_name = "NAME")]
    node: String,
    /// How long it can be used.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
}

/// Found a cluster, without a daemon.
pub(crate) fn init(format: Format, verb: &Init) -> Result<(), Failure> {
    let report = daemon::init(&verb.dir, &verb.name, verb.listen).map_err(|error| {
        let exit = match error {
            InitError::Used(_) => Exit::Conflict,
            InitError::Listen(_) => Exit::Usage,
            InitError::Dir(_) | InitError::Authority(_) | InitError::Identity(_) => Exit::Internal,
        };
        Failure::from_error(exit, &error)
    })?;
    show(format, &report, |report: &InitReport| {
        let kept = list([
            ("cluster", report.cluster.clone()),
            ("ca", report.ca.clone()),
            ("node", report.node.clone()),
            ("listens on", report.listen.to_string()),
            ("kept in", report.dir.display().to_string()),
        ]);
        format!(
            "{kept}\nnext: `pollux node run` starts it, `pollux cluster token --node NAME` lets another host join\n"
        )
    })
}

pub(crate) async fn token(context: &Context, verb: Token) -> Result<(), Failure> {
    let request = TokenRequest { node: verb.node, ttl_s: verb.ttl.as_secs() };
    let token = context.client.create_token(&request).await?;
    if context.format == Format::Table {
        // Beside standard output, which holds the token alone, so that `$(pollux cluster token --node n2)` is it.
        note(&format!("for {}, once, within {}:", token.node, span(request.ttl_s.saturating_mul(1000))));
    }
    show(context.format, &token, |token: &TokenView| format!("{}\n", token.token))
}

pub(crate) async fn status(context: &Context) -> Result<(), Failure> {
    context.show_read(&context.client.cluster().await?, status_text)
}

fn status_text(cluster: &ClusterView) -> String {
    let state = match cluster.problems.len() {
        0 => "healthy".to_owned(),
        1 => "1 problem, see below".to_owned(),
        count => format!("{count} problems, see below"),
    };
    let leader = cluster.leader.as_deref().unwrap_or("none");
    let quorum = match (cluster.quorum, cluster.may_lose) {
        (true, Some(1)) => "quorum; 1 more may be lost".to_owned(),
        (true, Some(0)) => "quorum; none may be lost".to_owned(),
        (true, Some(many)) => format!("quorum; {many} more may be lost"),
        (true, None) => "quorum".to_owned(),
        (false, _) => "NO quorum: nothing can be changed".to_owned(),
    };
    let as_of = match (cluster.quorum, cluster.touched_ms) {
        (true, _) => String::new(),
        (false, Some(ms)) => format!(", as of {} ago", span(ms)),
        (false, None) => ", of unknown age".to_owned(),
    };
    let mut text = list([
        ("cluster", cluster.id.clone()),
        ("state", state),
        ("leader", format!("{leader} (term {})", cluster.term)),
        ("voters", format!("{} ({quorum})", cluster.voters.join(", "))),
        ("vms", format!("{}, {} of them running", cluster.vms, cluster.vms_running)),
        ("answered by", format!("{}, log applied up to {}{as_of}", cluster.answered_by, cluster.applied)),
    ]);
    text.push('\n');
    text.push_str(&node::many(&cluster.nodes));
    for problem in &cluster.problems {
        text.push_str(&format!("\nproblem: {}\n  to do: {}\n", problem.what, problem.todo));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_api::{Health, NodeRole, NodeView, Problem};

    fn node(name: &str, health: Health, silent_ms: u64) -> NodeView {
        NodeView {
            id: 1,
            name: name.into(),
            address: format!("192.0.2.1{}:7700", name.trim_start_matches('n')),
            incarnation: 4,
            role: NodeRole::Voter,
            leader: name == "n1",
            health,
            silent_ms: Some(silent_ms),
            version: "0.1.0".into(),
            qemu: "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1".into(),
            accelerator: "tcg".into(),
            memory_mib: 8192,
            uefi: String::new(),
            processors: 4,
            bridges: vec!["br0".into()],
            kernel: "6.12.0".into(),
            tracking: "ok".into(),
            lacks: Vec::new(),
            refused: None,
        }
    }

    #[test]
    fn the_status_of_a_cluster_that_lost_a_node_says_what_to_do() {
        let cluster = ClusterView {
            id: "4f".repeat(16),
            healthy: false,
            answered_by: "n1".into(),
            leader: Some("n1".into()),
            term: 3,
            quorum: true,
            voters: vec!["n1".into(), "n2".into(), "n3".into()],
            may_lose: Some(0),
            touched_ms: Some(80),
            applied: 512,
            nodes: vec![node("n1", Health::Alive, 0), node("n2", Health::Alive, 120), node("n3", Health::Down, 95_000)],
            vms: 2,
            vms_running: 1,
            problems: vec![Problem {
                what: "node n3 has been silent for 1m35s".into(),
                todo: "see whether its host and its daemon run".into(),
            }],
        };
        insta::assert_snapshot!(status_text(&cluster), @r"
        cluster      4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f
        state        1 problem, see below
        leader       n1 (term 3)
        voters       n1, n2, n3 (quorum; none may be lost)
        vms          2, 1 of them running
        answered by  n1, log applied up to 512

        NAME  HEALTH  ROLE    HEARD      ADDRESS          QEMU    ACCEL  CPUS   MEMORY  MOVES
        n1    alive   leader  0ms ago    192.0.2.11:7700  10.0.2  tcg       4  8.0 GiB  yes
        n2    alive   voter   120ms ago  192.0.2.12:7700  10.0.2  tcg       4  8.0 GiB  yes
        n3    down    voter   1m35s ago  192.0.2.13:7700  10.0.2  tcg       4  8.0 GiB  yes

        problem: node n3 has been silent for 1m35s
          to do: see whether its host and its daemon run
        ");
    }
}
