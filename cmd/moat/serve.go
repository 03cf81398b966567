package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/internal/app"
)

func (c *cli) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: "Run the server until SIGINT or SIGTERM. Sandboxes outlive it and are adopted by the\n" +
			"next one, unless --kill-on-exit says otherwise.\n\n" +
			"Every flag is also a variable (--data-dir: MOAT_DATA_DIR) and a key of the file that\n" +
			"--config names (data-dir: /srv/moat). A flag goes before a variable, that before the\n" +
			"file. MOAT_API_KEY presets the first API key.",
		Args: cobra.NoArgs,
	}
	s := newSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := c.configure(s)
		if err != nil {
			return err
		}
		config.Ready = func(e app.Endpoints) { announce(c.stdout, e) }
		err = c.run(cmd.Context(), config)
		if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
			return nil // it was asked to stop
		}
		return err
	}
	return cmd
}

// configure loads the settings, with warnings to the log.
func (c *cli) configure(s *settings) (app.Config, error) {
	warnings, err := s.load(c.env)
	if err != nil {
		return app.Config{}, usageError{err}
	}
	s.Logger = s.logger(c.stderr)
	// net/http writes some of what apps say unasked to the standard logger.
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug).Writer())
	for _, warning := range warnings {
		s.Logger.Warn("configuration", "setting", warning)
	}
	return s.Config, nil
}

// announce prints what a client needs, as lines that a shell can read.
func announce(w io.Writer, e app.Endpoints) {
	line := []string{"export"}
	for _, v := range []struct{ name, value string }{
		{"E2B_API_URL", e.APIURL},
		{"E2B_SANDBOX_URL", e.SandboxURL},
		{"E2B_DOMAIN", e.Domain},
		{"E2B_API_KEY", e.Key.Reveal()},
	} {
		if v.value != "" {
			line = append(line, v.name+"="+v.value)
		}
	}
	fmt.Fprintln(w, "# moat is ready. Paste this where your program runs:")
	fmt.Fprintln(w, strings.Join(line, " "))
	if !e.Key.Empty() {
		fmt.Fprintln(w, "# The key is shown only this once; 'moat key create' makes another.")
	} else {
		fmt.Fprintln(w, "# E2B_API_KEY is the key that you have; 'moat key create' makes another.")
	}
}
