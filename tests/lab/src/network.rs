//! The namespaces of a lab and the cables between them.

use std::{fs, path::Path};

use crate::{
    error::LabError,
    fault::Cut,
    name::{self, CLIENT_ADDRESS, CLIENTS, LabName, NAMESPACES_DIR, SWITCH},
    tool::{ip, nft},
};

/// The node's end of its cable to the other nodes.
const CLUSTER: &str = "cluster0";
/// The end of the cable to the guests' and clients' network, in a node or with the clients.
const LAN: &str = "lan0";
/// The bridge that the guests of a node are attached to.
const BRIDGE: &str = "br0";
/// The largest frame that the guests' and clients' network carries, without its header, in bytes, so that guests with large ones can
/// be tried. Who is told nothing of it uses Ethernet's own.
const LAN_MTU: &str = "9000";
/// The two switches.
const CLUSTER_SWITCH: &str = "cluster";
const LAN_SWITCH: &str = "lan";

/// Makes all of it.
pub(crate) fn make(lab: &LabName, nodes: u8) -> Result<(), LabError> {
    let switch = add_namespace(lab, SWITCH)?;
    for bridge in [CLUSTER_SWITCH, LAN_SWITCH] {
        add_bridge(&switch, bridge)?;
    }
    let clients = add_namespace(lab, CLIENTS)?;
    add_cable(&clients, LAN, &switch, "clients", LAN_SWITCH)?;
    wide([(&*switch, LAN_SWITCH), (&switch, "clients"), (&clients, LAN)])?;
    ip(&["-n", &clients, "address", "add", &format!("{CLIENT_ADDRESS}/24"), "dev", LAN])?;
    for number in 1..=nodes {
        let node = add_namespace(lab, &name::node(number))?;
        add_cable(&node, CLUSTER, &switch, &format!("cluster-n{number}"), CLUSTER_SWITCH)?;
        let address = format!("{}/24", name::address(number).ip());
        ip(&["-n", &node, "address", "add", &address, "dev", CLUSTER])?;
        add_bridge(&node, BRIDGE)?;
        add_cable(&node, LAN, &switch, &format!("lan-n{number}"), LAN_SWITCH)?;
        ip(&["-n", &node, "link", "set", LAN, "master", BRIDGE])?;
        wide([(&*node, BRIDGE), (&node, LAN), (&switch, &format!("lan-n{number}"))])?;
    }
    Ok(())
}

/// The names of the namespaces of `lab` that there are.
pub(crate) fn namespaces(lab: &LabName) -> Vec<String> {
    let prefix = lab.namespace_prefix();
    let entries = fs::read_dir(NAMESPACES_DIR).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    found.sort_unstable();
    found
}

/// Takes the names of all namespaces of `lab` away. With no process in them, that ends them and all their interfaces.
pub(crate) fn remove(lab: &LabName) -> Result<(), LabError> {
    for namespace in namespaces(lab) {
        let removed = ip(&["netns", "delete", &namespace]);
        if removed.is_err() && Path::new(NAMESPACES_DIR).join(&namespace).exists() {
            return removed.map(drop);
        }
    }
    Ok(())
}

/// Makes the packets node `number` refuses exactly those that `cuts` say, all at once.
pub(crate) fn apply_cuts<'a>(lab: &LabName, number: u8, cuts: impl Iterator<Item = &'a Cut>) -> Result<(), LabError> {
    let cut_off: Vec<String> =
        cuts.filter(|cut| cut.to == number).map(|cut| name::address(cut.from).ip().to_string()).collect();
    // Refused where they arrive and without a word, as by a cable that is cut. Declaring the table first makes deleting it
    // succeed whether it was there or not.
    let mut script = "table inet pollux_lab\ndelete table inet pollux_lab\n".to_owned();
    if !cut_off.is_empty() {
        let refused = cut_off.join(", ");
        script += &format!(
            "table inet pollux_lab {{\n\
             chain cut {{\n\
             type filter hook input priority -10; policy accept;\n\
             iifname \"{CLUSTER}\" ip saddr {{ {refused} }} counter drop;\n\
             }}\n\
             }}\n"
        );
    }
    nft(&lab.namespace(&name::node(number)), &script)
}

fn add_namespace(lab: &LabName, host: &str) -> Result<String, LabError> {
    let namespace = lab.namespace(host);
    ip(&["netns", "add", &namespace])?;
    ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
    Ok(namespace)
}

/// A switch that forwards from the first moment, and says nothing itself.
fn add_bridge(namespace: &str, bridge: &str) -> Result<(), LabError> {
    let plain = ["forward_delay", "0", "stp_state", "0", "mcast_snooping", "0"];
    ip(&[&["-n", namespace, "link", "add", bridge, "type", "bridge"], &plain[..]].concat())?;
    silent_up(namespace, bridge)
}

/// A cable from `end` in `namespace` to `port` of `bridge` in `switch`. Both ends are made where they belong: nothing of
/// it is ever in the host's own namespace.
fn add_cable(namespace: &str, end: &str, switch: &str, port: &str, bridge: &str) -> Result<(), LabError> {
    ip(&["-n", namespace, "link", "add", end, "type", "veth", "peer", "name", port, "netns", switch])?;
    ip(&["-n", switch, "link", "set", port, "master", bridge])?;
    silent_up(switch, port)?;
    silent_up(namespace, end)
}

/// Interfaces, by namespace and name, that carry large frames from here on. Bridges go before their ports: one that has taken the
/// same MTU from them already would not count as told, and take that of the next guest's card.
fn wide<const N: usize>(interfaces: [(&str, &str); N]) -> Result<(), LabError> {
    interfaces.iter().try_for_each(|(namespace, interface)| {
        ip(&["-n", namespace, "link", "set", interface, "mtu", LAN_MTU]).map(drop)
    })
}

/// Up, without an IPv6 address of its own and the traffic that comes with one. In this order: an interface takes its
/// address when it comes up.
fn silent_up(namespace: &str, interface: &str) -> Result<(), LabError> {
    ip(&["-n", namespace, "link", "set", interface, "addrgenmode", "none"])?;
    ip(&["-n", namespace, "link", "set", interface, "up"]).map(drop)
}
