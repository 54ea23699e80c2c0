//! `instance-level`: why the instance level of a node says nothing of it, where many nodes are checked together.
//!
//! Nothing is run for it, and a node whose instance level came has its checks instead.

use crate::check::{Company, Spec};

/// What is known of the check that is no run of its own.
pub static SPEC: Spec = Spec {
    name: "instance-level",
    about: "why a node's own checks came to nothing, where `--level all` started them",
    explain: "With `--level all` every node runs its instance level first, and its checks stand in the result. Where they do \
              not come, because dhc is not installed there, another run holds the node, or the node gave no sign of life any \
              more, this check stands in their place as an error, which accuses nobody. The node does not enter a \
              collective then: nobody knows whether the others would wait for it.",
    metrics: &[],
    needs: None,
    tags: &["cluster"],
    company: Company::Alone,
    options: &[],
};
