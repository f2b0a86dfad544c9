//! "Did you mean": the name nearest to one that does not exist.

use pollux_api::{ApiError, ErrorKind};

use crate::api::client::Client;

use super::exit::Failure;

/// A name with more differences than this is another name, not a typo.
const TYPOS_MAX: usize = 2;

/// A failure about VM `name`, with the nearest name there is if it does not exist.
pub(crate) async fn for_vm(client: &Client, name: &str, error: ApiError) -> Failure {
    if error.kind != ErrorKind::NotFound {
        return error.into();
    }
    let names = client.vms().await.map(|vms| vms.into_iter().map(|vm| vm.name).collect());
    explain(name, "pollux vm list", names.unwrap_or_default(), error)
}

/// A failure about node `name`, with the nearest name there is if it does not exist.
pub(crate) async fn for_node(client: &Client, name: &str, error: ApiError) -> Failure {
    if error.kind != ErrorKind::NotFound {
        return error.into();
    }
    let names = client.nodes().await.map(|nodes| nodes.into_iter().map(|node| node.name).collect());
    explain(name, "pollux node list", names.unwrap_or_default(), error)
}

/// A failure about volume `name`, with the nearest name there is if it does not exist.
pub(crate) async fn for_volume(client: &Client, name: &str, error: ApiError) -> Failure {
    if error.kind != ErrorKind::NotFound {
        return error.into();
    }
    let names = client.volumes().await.map(|volumes| volumes.into_iter().map(|volume| volume.name).collect());
    explain(name, "pollux volume list", names.unwrap_or_default(), error)
}

/// A failure about pool `place`, with the nearest there is if it does not exist.
pub(crate) async fn for_pool(client: &Client, place: &str, error: ApiError) -> Failure {
    for_pools(client, &[place.to_owned()], error).await
}

/// A failure about one of these pools: the first that does not exist.
pub(crate) async fn for_pools(client: &Client, places: &[String], error: ApiError) -> Failure {
    if error.kind != ErrorKind::NotFound {
        return error.into();
    }
    let known = client.pools().await.map(|pools| pools.into_iter().map(|pool| pool.place).collect::<Vec<_>>());
    let known = known.unwrap_or_default();
    match places.iter().find(|place| !known.contains(place)) {
        Some(wrong) => explain(wrong, "pollux pool list", known, error),
        None => error.into(),
    }
}

fn explain(name: &str, verb: &str, names: Vec<String>, error: ApiError) -> Failure {
    let mut failure = Failure::from(error);
    if let Some(near) = nearest(name, &names) {
        failure.todo = format!("did you mean {near}? `{verb}` shows all");
    } else if failure.todo.is_empty() && !failure.message.contains(verb) {
        failure.todo = format!("`{verb}` shows those there are");
    }
    failure
}

/// The name with the fewest differences, if they are few and not all of it.
fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a str> {
    let limit = TYPOS_MAX.min(name.chars().count().saturating_sub(1));
    names
        .iter()
        .map(|other| (differences(name, other), other.as_str()))
        .filter(|&(count, _)| count > 0 && count <= limit)
        .min()
        .map(|(_, other)| other)
}

/// Letters to insert, drop, replace or swap with their neighbour to make `b` of `a` (optimal string alignment).
fn differences(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_name_and_another_name_does_not() {
        let names = ["web".to_owned(), "database".to_owned(), "n1".to_owned(), "n2".to_owned()];
        assert_eq!(nearest("wbe", &names), Some("web"), "two letters swapped");
        assert_eq!(nearest("datbase", &names), Some("database"), "one missing");
        assert_eq!(nearest("webb", &names), Some("web"), "one too many");
        assert_eq!(nearest("n3", &names), Some("n1"), "the first of those equally near");
        assert_eq!(nearest("mail", &names), None);
        assert_eq!(nearest("x", &names), None, "nothing of it would be left");
    }

    #[test]
    fn the_advice_names_the_nearest_or_where_to_look() {
        let error = || ApiError::not_found("there is no VM wbe");
        assert_eq!(
            explain("wbe", "pollux vm list", vec!["web".into()], error()).todo,
            "did you mean web? `pollux vm list` shows all"
        );
        assert_eq!(explain("wbe", "pollux vm list", vec![], error()).todo, "`pollux vm list` shows those there are");
    }
}
