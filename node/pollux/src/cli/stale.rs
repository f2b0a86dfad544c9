//! `--stale`: what a node knew last, and how old that may be.

use serde::Serialize;
use serde_json::Value;

use crate::api::client::Age;

use super::{
    Noun, cluster,
    exit::{Exit, Failure},
    node, op,
    output::span,
    pool, vm, volume,
};

/// Only what reads can be content with what was.
pub(super) fn check(noun: &Noun) -> Result<(), Failure> {
    let reads = matches!(
        noun,
        Noun::Cluster(cluster::Cluster::Status)
            | Noun::Node(node::Node::List | node::Node::Show { .. })
            | Noun::Vm(vm::Vm::List | vm::Vm::Show { .. } | vm::Vm::Why { .. })
            | Noun::Pool(pool::Pool::List)
            | Noun::Volume(volume::Volume::List | volume::Volume::Show { .. })
            | Noun::Op(op::Op::List | op::Op::Show { .. })
    );
    if reads {
        return Ok(());
    }
    Err(Failure::usage(
        "--stale goes with `cluster status`, with `list` and `show` of nodes, VMs, pools, volumes and operations, and with `vm why` only",
    )
    .todo("nothing is changed, and nothing waited for, on old knowledge"))
}

/// What stands above a table.
pub(super) fn headline(age: Age) -> String {
    match age {
        Age::Ms(ms) => {
            format!("as of {} ago (--stale): what this node knew when it was last in touch with a leader", span(ms))
        }
        Age::Unknown => {
            "of unknown age (--stale): this node has not been in touch with a leader since its daemon was started"
                .into()
        }
    }
}

/// The same value with `age_ms` in each of its objects; `null`: not known.
pub(super) fn with_age<T: Serialize>(value: &T, age: Age) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(value)
        .map_err(|error| Failure::new(Exit::Internal, format!("the result does not encode: {error}")))?;
    let age = match age {
        Age::Ms(ms) => Value::from(ms),
        Age::Unknown => Value::Null,
    };
    match value.as_array_mut() {
        Some(objects) => objects.iter_mut().for_each(|object| insert(object, &age)),
        None => insert(&mut value, &age),
    }
    Ok(value)
}

fn insert(object: &mut Value, age: &Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert("age_ms".into(), age.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_says_how_old_it_may_be() {
        let list = serde_json::json!([{ "name": "n1" }, { "name": "n2" }]);
        let aged = with_age(&list, Age::Ms(14_000)).unwrap();
        assert_eq!(aged, serde_json::json!([{ "name": "n1", "age_ms": 14_000 }, { "name": "n2", "age_ms": 14_000 }]));
        let one = with_age(&serde_json::json!({ "name": "n1" }), Age::Unknown).unwrap();
        assert_eq!(one, serde_json::json!({ "name": "n1", "age_ms": null }));
        assert!(headline(Age::Ms(14_000)).starts_with("as of 14s ago"));
    }
}
