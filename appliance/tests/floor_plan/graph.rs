//! Circles in a graph.

use std::collections::{BTreeMap, BTreeSet};

/// The targets of each node's edges.
pub(crate) type Edges = BTreeMap<String, BTreeSet<String>>;

/// Returns every largest set of nodes that all reach each other.
pub(crate) fn circles(edges: &Edges) -> BTreeSet<BTreeSet<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> =
        edges.keys().map(|node| (node, reached(edges, node))).collect();
    let reaches = |from: &String, to: &String| reach.get(from).is_some_and(|all| all.contains(to));
    let circle = |node: &String| -> BTreeSet<String> {
        edges.keys().filter(|other| reaches(node, other) && reaches(other, node)).cloned().collect()
    };
    edges.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

fn reached<'a>(edges: &'a Edges, from: &'a String) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(node) = open.pop() {
        for next in edges.get(node).into_iter().flatten() {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    reached
}
