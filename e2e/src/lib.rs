//! A real Kubernetes API server with real controllers, without a cluster, for tests of the whole aggregator.
//!
//! Real are etcd, kube-apiserver with RBAC and TLS, and kube-controller-manager with those controllers that the aggregator
//! depends on. Simulated are the nodes: their agents by [`procscan_agent::simulate::Fleet`], their kubelets by [`kubelet`].
//! The aggregator is the program that users run, as a process of its own.
//!
//! It runs inside a network namespace in which all of 10.64.0.0/10 is local, because the API server refuses loopback
//! addresses in EndpointSlices. `e2e/run` builds everything and makes that namespace.

pub mod aggregator;
pub mod audit;
pub mod cluster;
pub mod crds;
pub mod kubelet;
pub mod network;
pub mod process;
pub mod stage;
pub mod wait;

pub use aggregator::Aggregator;
pub use cluster::Cluster;
pub use stage::Stage;
pub use wait::until;
