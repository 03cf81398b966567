// Package kernel puts policy into the Linux kernel. It owns the network slots
// and is the only importer of nftables and netlink; it knows nothing of
// runtimes.
//
// A Network is opened once per network namespace. It makes slots (Create), each
// a namespace joined to the host by one veth pair, and puts policies in force
// for them (Apply). What a policy comes to is planned first, as plain data that
// can be read as text (plan.go), then written in transactions (transaction.go,
// tables.go), then read back. After a restart Adopt takes over the slots that
// are still there, Sweep removes those that are nobody's.
//
// A packet from a sandbox passes, in this order: its slot's guard, which drops
// every frame that does not carry the slot's own addresses; the table of what is
// never reachable; the slot's lists; the default. The first two are the same
// for all slots, one lookup by interface leads to the others. What a sandbox
// gets from outside are answers only, and from the node itself whatever the node
// begins.
//
// Where a policy has names, or more that addresses cannot decide, flows are
// redirected at their first packet to the Doors, behind which the proxy and the
// resolver are (redirect.go). Of all other flows Watch tells what became.
//
// Everything fails closed: a slot is born with rules that drop all, a change
// that fails leaves the rules as they were, and the rules stay in force when
// the process dies.
package kernel
