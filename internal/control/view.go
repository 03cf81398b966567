package control

import (
	"strconv"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/sandbox"
	"github.com/moat-sandbox/moat/internal/store"
)

// This file turns records into what clients see of them.

// connection is what a client needs to use a sandbox, with all its secrets.
func (c *call) connection(s store.Sandbox) api.Sandbox {
	answer := api.Sandbox{
		SandboxID:       s.ID,
		TemplateID:      s.TemplateID,
		Alias:           s.Alias,
		ClientID:        api.ClientID,
		EnvdVersion:     api.GuestVersion,
		EnvdAccessToken: c.Engine.GuestToken(s).Reveal(),
		Domain:          c.domain(),
	}
	if token := c.Engine.TrafficToken(s); !token.Empty() {
		revealed := token.Reveal()
		answer.TrafficAccessToken = &revealed
	}
	return answer
}

func (c *call) detail(s store.Sandbox) api.SandboxDetail {
	return api.SandboxDetail{
		ListedSandbox:       listed(s),
		Domain:              c.domain(),
		AllowInternetAccess: s.InternetAccess,
		Network:             network(s),
		Lifecycle:           api.Lifecycle{OnTimeout: "kill"},
	}
}

// network is what was said about the network, nil for nothing.
func network(s store.Sandbox) *api.Network {
	said := api.Network{
		AllowOut: s.Network.AllowOut, DenyOut: s.Network.DenyOut,
		AllowPublicTraffic: s.Ingress.AllowPublicTraffic,
		Rules:              shownRules(s.Network.Rules), EgressProxy: shownProxy(s.Network.EgressProxy),
	}
	if s.Network.StrictDNS {
		said.DNS = api.DNSStrict
	}
	if s.Ingress.MaskHost != "" {
		said.MaskRequestHost = &s.Ingress.MaskHost
	}
	for _, port := range s.Ingress.HTTPSPorts {
		said.HTTPSPorts = append(said.HTTPSPorts, int(port))
	}
	if len(s.Ingress.Ports) > 0 {
		said.Ports = make(map[string]api.Visibility, len(s.Ingress.Ports))
	}
	for port, public := range s.Ingress.Ports {
		said.Ports[strconv.Itoa(int(port))] = visibility(public)
	}
	entries := len(said.AllowOut) + len(said.DenyOut) + len(said.HTTPSPorts) + len(said.Ports)
	none := said.AllowPublicTraffic == nil && said.MaskRequestHost == nil && said.Rules == nil && said.EgressProxy == nil && said.DNS == ""
	if entries == 0 && none {
		return nil
	}
	return &said
}

func visibility(public bool) api.Visibility {
	if public {
		return api.Public
	}
	return api.Private
}

// domain is nil where none is configured. Where one is, it is always told: a
// client that knows none makes hosts below E2B's.
func (c *call) domain() *string {
	if c.Domain == "" {
		return nil
	}
	return &c.Domain
}

func listed(s store.Sandbox) api.ListedSandbox {
	return api.ListedSandbox{
		SandboxID:   s.ID,
		TemplateID:  s.TemplateID,
		Alias:       s.Alias,
		ClientID:    api.ClientID,
		EnvdVersion: api.GuestVersion,
		State:       api.StateRunning,
		StartedAt:   shown(s.StartedAt),
		EndAt:       shown(s.EndAt),
		CPUCount:    s.Limits.CPUs,
		MemoryMB:    s.Limits.MemoryMB,
		DiskSizeMB:  s.Limits.DiskMB,
		Metadata:    s.Metadata,
	}
}

// shown brings a time to the precision that clients keep: what they send back
// must compare equal.
func shown(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

func metric(s sandbox.Sample) api.SandboxMetric {
	return api.SandboxMetric{
		Timestamp:     shown(s.At),
		TimestampUnix: s.At.Unix(),
		CPUCount:      s.CPUs,
		CPUUsedPct:    s.CPUUsedPct,
		MemUsed:       s.MemUsed,
		MemTotal:      s.MemTotal,
		MemCache:      s.MemCache,
		DiskUsed:      s.DiskUsed,
		DiskTotal:     s.DiskTotal,
	}
}
