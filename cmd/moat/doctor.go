package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/internal/app"
)

func (c *cli) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what this machine can do, by trying it",
		Long: "Find out what this machine lacks and which isolation a sandbox gets here. It boots a\n" +
			"sandbox to know. Takes the settings of 'moat serve'. Exits with 1 when the server\n" +
			"would not start.",
		Args: cobra.NoArgs,
	}
	s := newSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := c.configure(s)
		if err != nil {
			return err
		}
		report, err := c.doctor(cmd.Context(), config)
		if err != nil {
			return err
		}
		report.Findings = append(report.Findings, findServer(cmd.Context(), config.DataDir))
		if err := c.printReport(report); err != nil {
			return err
		}
		for _, f := range report.Findings {
			if f.Level == app.Fail {
				return exitStatus{code: exitError}
			}
		}
		return nil
	}
	return c.addJSONFlag(cmd)
}

func (c *cli) printReport(report app.Report) error {
	if c.json {
		return c.printJSON(report)
	}
	t := newTable(c.stdout)
	for _, f := range report.Findings {
		t.row(string(f.Level), f.Subject, f.Detail)
	}
	return t.flush()
}

// findServer reports whether a server already runs on this data directory.
func findServer(ctx context.Context, dataDir string) app.Finding {
	socket := filepath.Join(dataDir, app.SocketName)
	finding := app.Finding{Level: app.OK, Subject: "server"}
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		finding.Detail = "none is running in " + dataDir
		return finding
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	running, err := client.New(client.Config{Socket: socket})
	if err == nil {
		defer running.Close()
		health, failed := running.Health(ctx)
		finding.Detail, err = "running, sandboxes: "+strconv.Itoa(health.Sandboxes), failed
	}
	if err != nil {
		finding.Level, finding.Detail = app.Warn, "does not answer: "+oneLine(err)
	}
	return finding
}
