package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"build/internal/build"
)

const defaultRegistry = "docker.io"

// maxPassword bounds what is read as a password: tokens of some registries have several kilobytes.
const maxPassword = 1 << 20

func (a *app) loginCommand(g *globalFlags) *cobra.Command {
	var user, password string
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "login [HOST]",
		Short: "Log in to a registry and keep the credentials in docker's config.json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("one registry is expected, got %q", args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			host := defaultRegistry
			if len(args) == 1 {
				host = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://"), "/")
			}
			if fromStdin && cmd.Flags().Changed("password") {
				return usagef("--password and --password-stdin exclude each other")
			}
			if fromStdin && user == "" {
				return usagef("--password-stdin needs --username")
			}
			if cmd.Flags().Changed("password") {
				a.note("a password in the arguments can be read by others on this machine; --password-stdin is safer")
			}
			var err error
			if user, password, err = a.credentials(user, password, fromStdin); err != nil {
				return err
			}
			so, err := a.storeOptions(g)
			if err != nil {
				return err
			}
			if err := build.Login(cmd.Context(), so, host, user, password); err != nil {
				return err
			}
			return a.println(a.stdout, "Login Succeeded")
		},
	}
	cmd.Flags().StringVarP(&user, "username", "u", "", "`USER` name")
	cmd.Flags().StringVarP(&password, "password", "p", "", "`PASSWORD` or token")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

// credentials returns user and password, asking for what is missing when there is a terminal.
func (a *app) credentials(user, password string, fromStdin bool) (string, string, error) {
	if fromStdin {
		data, err := io.ReadAll(io.LimitReader(a.stdin, maxPassword))
		if err != nil {
			return "", "", fmt.Errorf("read the password: %w", err)
		}
		if password = strings.TrimRight(string(data), "\r\n"); password == "" {
			return "", "", usagef("the password on standard input is empty")
		}
		return user, password, nil
	}
	if user != "" && password != "" {
		return user, password, nil
	}
	if !isTerminal(a.stdin) {
		return "", "", &build.UsageError{Msg: "user and password are missing, and standard input is no terminal to ask on", Hint: "use --username and --password-stdin"}
	}
	if user == "" {
		fmt.Fprint(a.stderr, "Username: ")
		line, err := bufio.NewReader(io.LimitReader(a.stdin, maxPassword)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", "", fmt.Errorf("read the user name: %w", err)
		}
		if user = strings.TrimSpace(line); user == "" {
			return "", "", usagef("the user name is empty")
		}
	}
	if password == "" {
		fmt.Fprint(a.stderr, "Password: ")
		data, err := term.ReadPassword(int(a.stdin.Fd()))
		fmt.Fprintln(a.stderr)
		if err != nil {
			return "", "", fmt.Errorf("read the password: %w", err)
		}
		if password = string(data); password == "" {
			return "", "", usagef("the password is empty")
		}
	}
	return user, password, nil
}
