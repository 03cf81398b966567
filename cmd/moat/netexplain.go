package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

func (c *cli) netExplainCommand() *cobra.Command {
	var protocol, method string
	var candidate documentFlags
	cmd := &cobra.Command{
		Use:   "explain ID [TARGET]",
		Short: "Say whether a sandbox may reach something, and why",
		Long: "Say whether a sandbox may reach something, and why. TARGET is a URL, ADDRESS[:PORT] or\n" +
			"NAME[:PORT], for a name with port 443 unless it says another. What enforces the policy is made\n" +
			"from the same value that answers; nothing is sent.\n\n" +
			"With --allow, --deny, --no-internet or --set-header also say what would become of it if these replaced\n" +
			"what is in force, and which recorded flows they would have refused or allowed.",
		Example: "  moat net explain ID https://api.example.com/v1\n  moat net explain ID 8.8.8.8:53 --protocol udp\n" +
			"  moat net explain ID --no-internet --allow '*.example.com'",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: c.completeSandboxes,
	}
	cmd.RunE = c.onServer(func(ctx context.Context, server *client.Client, args []string) error {
		question := api.Question{Protocol: protocol}
		if len(args) == 2 {
			question = questionAbout(args[1], protocol)
		}
		question.Method = method
		if candidate.given(cmd) {
			update, err := candidate.update()
			if err != nil {
				return usageError{err}
			}
			question.Candidate = &update
		} else if len(args) == 1 {
			return usageError{errNothingAsked}
		}
		explanation, err := server.Explain(ctx, args[0], question)
		if err != nil {
			return err
		}
		if c.json {
			return c.printJSON(explanation)
		}
		return c.printExplanation(explanation)
	})
	cmd.Flags().StringVar(&protocol, "protocol", "", "`protocol`: tcp unless it is udp, icmp, or dns for whether a name resolves")
	cmd.Flags().StringVar(&method, "method", "", "`method` of the request for a URL (default GET)")
	candidate.declare(cmd)
	return c.addJSONFlag(cmd)
}

// questionAbout reads a target. What makes no sense is left for the server to
// refuse.
func questionAbout(target, protocol string) api.Question {
	if strings.Contains(target, "://") {
		return api.Question{URL: target, Protocol: protocol}
	}
	if ap, err := netip.ParseAddrPort(target); err == nil {
		return api.Question{Address: ap.Addr().String(), Port: int64(ap.Port()), Protocol: protocol}
	}
	if addr, err := netip.ParseAddr(target); err == nil {
		return api.Question{Address: addr.String(), Protocol: protocol}
	}
	if protocol == "dns" {
		return api.Question{Host: target, Protocol: protocol}
	}
	question := api.Question{Host: target, Port: 443, Protocol: protocol}
	if host, text, err := net.SplitHostPort(target); err == nil {
		if port, err := strconv.ParseInt(text, 10, 32); err == nil {
			question.Host, question.Port = host, port
		}
	}
	return question
}

// printChange says what a rule does to a request.
func (c *cli) printChange(change *api.RequestChange) {
	if change == nil {
		return
	}
	line := "rule " + change.Rule + setsHeaders(change.Headers)
	if change.StripCredentials {
		line += ", strips the sandbox's own credentials"
	}
	fmt.Fprintln(c.stdout, printable(line))
}

func (c *cli) printExplanation(e api.Explanation) error {
	if e.Verdict != "" {
		fmt.Fprintf(c.stdout, "%s: %s\n", e.Verdict, printable(e.Reason))
		c.printChange(e.Change)
	}
	if e.Grant != nil {
		fmt.Fprintf(c.stdout, "until %s, by grant %s\n", stamp(e.Grant.ExpiresAt), e.Grant.ID)
	}
	if e.Candidate != nil {
		fmt.Fprintf(c.stdout, "candidate: %s: %s\n", e.Candidate.Verdict, printable(e.Candidate.Reason))
		c.printChange(e.Candidate.Change)
	}
	if e.Replay == nil {
		return nil
	}
	if len(e.Replay.Refused)+len(e.Replay.Allowed) == 0 {
		fmt.Fprintf(c.stdout, "The candidate changes nothing for the %d recorded flows.\n", e.Replay.Records)
		return nil
	}
	for _, part := range []struct {
		flows []api.ReplayedFlow
		verb  string
	}{{e.Replay.Refused, "refused"}, {e.Replay.Allowed, "allowed"}} {
		if len(part.flows) == 0 {
			continue
		}
		fmt.Fprintf(c.stdout, "Of %d recorded flows the candidate would have %s:\n", e.Replay.Records, part.verb)
		t := newTable(c.stdout, "TIMES", "LAST", "PROTOCOL", "DESTINATION", "WHY")
		for _, f := range part.flows {
			where := destination(api.FlowRecord{Protocol: f.Protocol, Name: f.Name, Address: f.Address, Port: f.Port})
			t.row(strconv.Itoa(f.Count), stamp(f.Last), f.Protocol, where, f.Reason)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if e.Replay.Omitted > 0 {
		fmt.Fprintf(c.stdout, "%d more are not listed.\n", e.Replay.Omitted)
	}
	return nil
}
