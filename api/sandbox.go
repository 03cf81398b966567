package api

import "time"

// NewSandbox is the body of POST /sandboxes and of POST /v2/sandboxes.
//
// The two differ in one default: without Secure the first makes a sandbox
// whose guest daemon is open to everybody, unless public traffic is restricted;
// the second ignores Secure and always guards it. E2B and Cube define more
// fields than these; what this server cannot enforce is refused with 400 unless
// it has the value that changes nothing.
type NewSandbox struct {
	TemplateID string `json:"templateID"`
	// Timeout is the time to live in seconds; nil means 300.
	Timeout *int64 `json:"timeout,omitzero"`
	Secure  *bool  `json:"secure,omitzero"`
	// AllowInternetAccess false denies everything that Network.AllowOut does
	// not name. Nil means true.
	AllowInternetAccess *bool             `json:"allow_internet_access,omitzero"`
	Network             *Network          `json:"network,omitzero"`
	Metadata            map[string]string `json:"metadata,omitempty"`
	EnvVars             map[string]string `json:"envVars,omitempty"`
}

// Network says what a sandbox may reach, and who may reach it. AllowOut beats
// DenyOut; what neither names is reachable unless internet access is off.
// Entries are IPv4 or IPv6 addresses or CIDRs; "0.0.0.0/0" in DenyOut means all
// traffic, IPv6 too.
type Network struct {
	AllowOut []string `json:"allowOut,omitempty"`
	DenyOut  []string `json:"denyOut,omitempty"`
	// AllowPublicTraffic false demands the sandbox's traffic token of every
	// request to its public URLs, but for what Ports excepts. Nil means true.
	AllowPublicTraffic *bool `json:"allowPublicTraffic,omitzero"`
	// MaskRequestHost is the Host header that programs in the sandbox see, a
	// host with or without a port; "${PORT}" in it stands for the port of the
	// request. Nil and "" leave the header alone.
	MaskRequestHost *string `json:"maskRequestHost,omitzero"`
	// HTTPSPorts are where programs in the sandbox speak TLS, with whatever
	// certificate they have.
	HTTPSPorts []int `json:"httpsPorts,omitempty"`
	// Ports are exceptions to AllowPublicTraffic, by port. This is not E2B's.
	Ports map[string]Visibility `json:"ports,omitempty"`
	// Rules say what becomes of HTTP and HTTPS requests.
	Rules *Rules `json:"rules,omitempty"`
	// EgressProxy is where all TCP connections go through.
	EgressProxy *EgressProxy `json:"egressProxy,omitempty"`
	// DNS says what becomes of names that may not be reached; empty means
	// DNSSynthetic. This is not E2B's.
	DNS DNS `json:"dns,omitempty"`
}

// DNS says how names resolve that a sandbox may not reach.
type DNS string

// DNSSynthetic gives them addresses to which nothing leads: connections fail
// with the reason. DNSStrict makes them not exist.
const (
	DNSSynthetic DNS = "synthetic"
	DNSStrict    DNS = "strict"
)

// Visibility says whom a port of a sandbox is for.
type Visibility string

// A public port is for everybody, a private one for those with the traffic
// token.
const (
	Public  Visibility = "public"
	Private Visibility = "private"
)

// NetworkUpdate is the body of PUT /sandboxes/{sandboxID}/network. It replaces
// what the sandbox may reach: what is omitted is cleared. Who may reach it is
// settled at create: the other fields of Network may be there only if they say
// what is so already. The server also reads Cube's spelling
// allowInternetAccess.
type NetworkUpdate struct {
	Network
	AllowInternetAccess *bool `json:"allow_internet_access,omitzero"`
}

// Sandbox is the answer to create and connect.
type Sandbox struct {
	SandboxID   string `json:"sandboxID"`
	TemplateID  string `json:"templateID"`
	Alias       string `json:"alias,omitempty"`
	ClientID    string `json:"clientID"`
	EnvdVersion string `json:"envdVersion"`
	// EnvdAccessToken opens the guest daemon of a secured sandbox. It is a
	// secret.
	EnvdAccessToken string `json:"envdAccessToken,omitempty"`
	// TrafficAccessToken opens the public URLs of a sandbox that is not open to
	// everybody; null for one that is. It is a secret. Connect leaves it out
	// where it is called as CubeSandbox's clients do: without /v2 and without
	// a timeout.
	TrafficAccessToken *string `json:"trafficAccessToken"`
	// Domain is what the sandbox's public hosts end in, with a port where one
	// is needed; null leaves it to the client's own configuration.
	Domain *string `json:"domain"`
}

// Connect is the body of the connect calls; both it and its fields may be
// absent.
type Connect struct {
	// Timeout in seconds from now; it only ever extends. Nil means 300.
	Timeout *int64 `json:"timeout,omitzero"`
}

// TrafficToken is the answer to POST /sandboxes/{sandboxID}/traffic-token, which
// makes the token that there was before worthless. It is a secret.
type TrafficToken struct {
	TrafficAccessToken string `json:"trafficAccessToken"`
}

// NewLink is the body of POST /sandboxes/{sandboxID}/links.
type NewLink struct {
	// Port is a private port of the sandbox.
	Port int `json:"port"`
	// Seconds is for how long it opens the port, 1 to 604800 (a week); nil
	// means 900.
	Seconds *int64 `json:"seconds,omitzero"`
}

// Link is a URL that opens a private port to whoever follows it in a browser.
// It is a secret. Another traffic token makes all links worthless.
type Link struct {
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// Timeout is the body of POST /sandboxes/{sandboxID}/timeout.
type Timeout struct {
	// Timeout in seconds from now. It may shorten; 0 ends the sandbox at once.
	Timeout *int64 `json:"timeout"`
}

// Refresh is the body of POST /sandboxes/{sandboxID}/refreshes.
type Refresh struct {
	// Duration in seconds from now, 15 to 3600; it only ever extends. Nil and
	// less than 15 mean 15.
	Duration *int64 `json:"duration,omitzero"`
}

// State is a sandbox's state as clients know it.
type State string

// StateRunning is the only state of a sandbox that a client can see so far;
// StatePaused may be asked for in lists.
const (
	StateRunning State = "running"
	StatePaused  State = "paused"
)

// ListedSandbox is one entry of the lists.
type ListedSandbox struct {
	SandboxID   string            `json:"sandboxID"`
	TemplateID  string            `json:"templateID"`
	Alias       string            `json:"alias,omitempty"`
	ClientID    string            `json:"clientID"`
	EnvdVersion string            `json:"envdVersion"`
	State       State             `json:"state"`
	StartedAt   time.Time         `json:"startedAt"`
	EndAt       time.Time         `json:"endAt"`
	CPUCount    int               `json:"cpuCount"`
	MemoryMB    int               `json:"memoryMB"`
	DiskSizeMB  int               `json:"diskSizeMB"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// SandboxDetail is the answer to GET /sandboxes/{sandboxID}. It holds no secret:
// tokens come with create and connect only.
type SandboxDetail struct {
	ListedSandbox
	Domain *string `json:"domain"` // as in Sandbox
	// AllowInternetAccess is the flag as given; null when it never was.
	AllowInternetAccess *bool `json:"allowInternetAccess"`
	// Network is as given; absent when nothing was.
	Network   *Network  `json:"network,omitzero"`
	Lifecycle Lifecycle `json:"lifecycle"`
}

// Lifecycle says what happens at the end of the timeout.
type Lifecycle struct {
	OnTimeout  string `json:"onTimeout"`  // "kill"
	AutoResume bool   `json:"autoResume"` // false
}

// SandboxMetric is one reading of a sandbox's resources. Sizes are in bytes.
type SandboxMetric struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"` // seconds
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"` // of all CPUs together, 0 to 100
	MemUsed       int64     `json:"memUsed"`
	MemTotal      int64     `json:"memTotal"`
	MemCache      int64     `json:"memCache"`
	DiskUsed      int64     `json:"diskUsed"`
	DiskTotal     int64     `json:"diskTotal"`
}

// SandboxesMetrics is the answer to GET /sandboxes/metrics: the newest reading
// of each sandbox that exists and has one, by sandbox id.
type SandboxesMetrics struct {
	Sandboxes map[string]SandboxMetric `json:"sandboxes"`
}
