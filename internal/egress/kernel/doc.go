// Package kernel puts policy into the Linux kernel: it owns the network slots,
// plans nftables rules from compiled policies (Plan, pure) and applies them in
// one transaction (Apply). It is the only importer of nftables and netlink, and
// knows nothing of runtimes.
package kernel
