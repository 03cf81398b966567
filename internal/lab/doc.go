// Package lab is a laboratory made of Linux network namespaces: a node whose
// only route leads to a fake internet, and that internet with its public
// addresses, DNS, web and echo servers. No packet sent inside it can reach the
// real world, because no interface of it leads there.
//
// The namespaces have no names and belong to the process that built them: they
// vanish with it, also when it is killed, and every process started on the
// node dies with them. Building a lab needs root.
package lab
