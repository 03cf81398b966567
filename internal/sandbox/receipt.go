package sandbox

// Receipt confirms a change of a sandbox's network: the data plane has taken
// it over.
type Receipt struct {
	// Generation numbers the network documents of the sandbox, from 1.
	Generation uint64
	// Cut is how many live flows ended because the new document denies them.
	Cut int
}
