package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/moat-sandbox/moat/client"
	"github.com/moat-sandbox/moat/internal/app"
)

// server is what flags say about where the server is.
type server struct{ apiURL, sandboxURL, domain, dataDir string }

// addServerFlags declares the flags that say where the server is, for a command
// and those below it.
func (c *cli) addServerFlags(cmd *cobra.Command) *cobra.Command {
	flags := cmd.PersistentFlags()
	flags.StringVar(&c.server.apiURL, "api-url", "", "base `URL` of the API (E2B_API_URL)")
	flags.StringVar(&c.server.sandboxURL, "sandbox-url", "", "base `URL` for what goes on inside sandboxes (E2B_SANDBOX_URL)")
	flags.StringVar(&c.server.domain, "domain", "", "`name` below which sandboxes are (E2B_DOMAIN)")
	return c.addSocketFlag(cmd)
}

// addSocketFlag declares the flag that says where the operator's socket is.
func (c *cli) addSocketFlag(cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVar(&c.server.dataDir, "data-dir", "",
		"use the socket in this `directory` (MOAT_DATA_DIR; default "+defaultDataDir+")")
	return cmd
}

// connect finds the server as E2B's SDKs do, by URLs and a key. Where nothing is
// said about any, it is the one whose socket lies in the data directory.
func (c *cli) connect() (*client.Client, error) {
	config, err := c.server.find(c.env)
	if err != nil {
		return nil, usageError{err}
	}
	if config.Socket != "" {
		return c.operator()
	}
	found, err := client.New(config)
	if err != nil {
		return nil, usageError{err}
	}
	return found, nil
}

// use is what a command does with a server.
type use func(ctx context.Context, server *client.Client, args []string) error

// onServer makes a command of what it does with the server that is meant.
func (c *cli) onServer(do use) func(*cobra.Command, []string) error { return with(c.connect, do) }

// onSocket is onServer for what only the operator may do.
func (c *cli) onSocket(do use) func(*cobra.Command, []string) error { return with(c.operator, do) }

func with(find func() (*client.Client, error), do use) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		server, err := find()
		if err != nil {
			return err
		}
		defer server.Close()
		return do(cmd.Context(), server, args)
	}
}

// each does something for every argument, also after one of them failed.
func each(args []string, do func(arg string) error) error {
	var errs []error
	for _, arg := range args {
		errs = append(errs, do(arg))
	}
	return errors.Join(errs...)
}

// operator speaks over the socket, whatever the environment says about other
// servers.
func (c *cli) operator() (*client.Client, error) {
	socket := c.server.socket(c.env)
	if err := checkSocket(socket); err != nil {
		return nil, err
	}
	return client.New(client.Config{Socket: socket})
}

func (s server) socket(env map[string]string) string {
	return filepath.Join(first(s.dataDir, env["MOAT_DATA_DIR"], defaultDataDir), app.SocketName)
}

// find decides between socket and URLs. A flag goes before a variable.
func (s server) find(env map[string]string) (client.Config, error) {
	config := client.Config{
		APIURL:     first(s.apiURL, env["E2B_API_URL"]),
		SandboxURL: first(s.sandboxURL, env["E2B_SANDBOX_URL"]),
		Domain:     first(s.domain, env["E2B_DOMAIN"]),
		APIKey:     env["E2B_API_KEY"],
	}
	byURL := s.apiURL != "" || s.sandboxURL != "" || s.domain != ""
	switch {
	case s.dataDir != "" && byURL:
		return client.Config{}, errors.New("--data-dir excludes --api-url, --sandbox-url and --domain")
	case s.dataDir != "" || config == client.Config{}:
		return client.Config{Socket: s.socket(env)}, nil
	case config.APIURL == "" && config.Domain == "":
		return client.Config{}, errors.New("E2B_API_KEY or E2B_SANDBOX_URL is set, but neither E2B_API_URL nor E2B_DOMAIN says where the server is")
	case config.APIKey == "":
		return client.Config{}, errors.New("E2B_API_KEY is not set; only the operator's socket does without (--data-dir)")
	}
	return config, nil
}

// checkSocket explains the common reasons why nobody answers there.
func checkSocket(path string) error {
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no server at %s: start 'moat serve', or set E2B_API_URL and E2B_API_KEY", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is for the operator only: run as root, or set E2B_API_URL and E2B_API_KEY", path)
	}
	if _, stat := os.Stat(path); stat == nil {
		return fmt.Errorf("no server answers at %s: %w", path, err)
	}
	return err
}

// first returns the first text that is not empty.
func first(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}
