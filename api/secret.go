package api

import "time"

// SecretValue is the body of PUT /secrets/{secret}. The value is never shown
// again.
type SecretValue struct {
	Value string `json:"value"`
}

// Secret describes a secret without its value. Values of headers in
// Network.Rules refer to it as ${e2b.secrets.NAME}.
type Secret struct {
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}
