//! Making TAPs, and the refusals. Needs root: each test makes a network namespace.
#![allow(missing_docs, dead_code)]

mod world;

use std::{process::Command, time::Duration};

use pollux_net::{Tap, TapError, bridges};
use pollux_wire::id::Generation;
use world::*;

#[test]
fn a_tap_is_there_until_it_is_dropped() {
    in_a_namespace(|| async {
        let tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        assert!(has_interface("px1n0"));

        drop(tap);

        assert!(!has_interface("px1n0"));
        Tap::open("px1n0", BRIDGE, MTU).expect("the name is free again");
    });
}

#[test]
fn a_bridge_that_is_not_there_is_named_with_what_to_do() {
    in_a_namespace(|| async {
        let error = Tap::open("px1n0", "lan0", MTU).unwrap_err();

        assert!(matches!(error, TapError::NoBridge { .. }));
        let text = error.to_string();
        for part in ["'lan0'", "ip link add lan0 type bridge", "there are: br0"] {
            assert!(text.contains(part), "{part:?} is missing in: {text}");
        }
        assert!(!has_interface("px1n0"));
    });
}

#[test]
fn what_is_no_bridge_is_not_taken_for_one() {
    in_a_namespace(|| async {
        let error = Tap::open("px1n0", "lo", MTU).unwrap_err();

        assert!(matches!(error, TapError::NotABridge { .. }), "refused otherwise: {error}");
    });
}

#[test]
fn a_name_in_use_is_not_shared() {
    in_a_namespace(|| async {
        let _first = Tap::open("px1n0", BRIDGE, MTU).unwrap();

        assert!(matches!(Tap::open("px1n0", BRIDGE, MTU), Err(TapError::Busy { .. })));

        // Nor is one that somebody made to stay.
        ip(&["tuntap", "add", "px2n0", "mode", "tap"]);
        assert!(matches!(Tap::open("px2n0", BRIDGE, MTU), Err(TapError::Busy { .. })));
    });
}

#[test]
fn a_name_or_mtu_that_cannot_be_leaves_nothing_behind() {
    in_a_namespace(|| async {
        for name in ["", "sixteen-bytes-ab", "a/b", "a b", "px%d"] {
            assert!(matches!(Tap::open(name, BRIDGE, MTU), Err(TapError::BadName { .. })), "{name:?} was taken");
        }

        assert!(matches!(Tap::open("px1n0", BRIDGE, 10_000_000), Err(TapError::BadMtu { .. })));
        assert!(!has_interface("px1n0"));
    });
}

#[test]
fn a_tap_that_comes_and_goes_leaves_the_bridges_address_alone() {
    in_a_namespace(|| async {
        ip(&["link", "add", "uplink", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "uplink", "master", BRIDGE, "up"]);
        let line = || Command::new("ip").args(["-br", "link", "show", BRIDGE]).output().unwrap().stdout;
        let address = || String::from_utf8(line()).unwrap().split_whitespace().nth(2).map(str::to_owned);
        let before = address();

        let _tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();

        assert_eq!(address(), before);
    });
}

#[test]
fn the_bridges_listed_are_those_of_this_namespace() {
    in_a_namespace(|| async {
        ip(&["link", "add", "another", "type", "bridge"]);
        ip(&["link", "add", "no-bridge", "type", "veth", "peer", "name", "far"]);

        assert_eq!(bridges().unwrap(), ["another", "br0"]);
    });
}

#[test]
fn the_host_itself_says_nothing_to_the_guest() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(Generation(1));
        guest.port.open_gate(Generation(1)).await.unwrap();

        // The kernel's own IPv6 traffic would come within its first second on an interface.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        world.says(1, 60).await;

        assert_eq!(number(&guest.sees().await), Some(1), "something came before the world's first frame");
    });
}
