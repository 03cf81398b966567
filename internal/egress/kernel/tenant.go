package kernel

import "github.com/moat-sandbox/moat/internal/policy"

// Tenant is a slot in use and the policy it shall obey; a nil policy closes it.
type Tenant struct {
	Slot   Slot
	Policy *policy.Policy
}

// Receipt confirms that a policy is in force.
type Receipt struct {
	// Cut is how many live flows were ended because the policy denies them.
	Cut int
}
