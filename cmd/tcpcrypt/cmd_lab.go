package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/lab"
)

// labFlags are the flags of `tcpcrypt lab` as typed.
type labFlags struct {
	hosts   []string
	serve   []string
	pcap    string
	json    bool
	verbose bool
}

func newLab() *cobra.Command {
	var flags labFlags
	cmd := &cobra.Command{
		Use:   "lab [flags] -- COMMAND [ARG]...",
		Short: "Try it: hosts made of namespaces, a daemon in each, and a command on the first",
		Long: `Makes hosts out of Linux namespaces, joins them by a router, runs the daemon in each, starts servers, runs
COMMAND on the first host and stops everything. Needs no root where the kernel lets users create user
namespaces, touches nothing outside of them and leaves nothing behind, whatever ends it.

The hosts find each other by name: b has IPv4 and IPv6, b.ip4 and b.ip6 one of them. Each has a /run of its own,
with the daemon's configuration in /run/tcpcrypt.toml (every connection in the lab, opportunistically), and on a
host 'tcpcrypt conns' needs no --socket. There is no way out to other networks.

COMMAND has the terminal, and its exit status becomes the lab's: 128 plus the number if a signal ended it, 127 if
there is no such command. 1 is also what fails before or beside it: a daemon, a server that does not listen.
Afterwards a table of all connections, as the daemons at both ends saw them, goes to standard error.`,
		Example: `  tcpcrypt lab --serve 'b=python3 -m http.server 80' -- curl http://b/
  tcpcrypt lab --host a --host b --host c=plain --pcap /tmp/wire -- bash`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("lab: no COMMAND; for example: tcpcrypt lab -- bash")
			}
			_, err := flags.parse(args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			options, err := flags.parse(args)
			if err != nil {
				return err
			}
			if !lab.Inside() {
				if err := checkLab(options); err != nil {
					return err
				}
				return enterLab(cmd, flags.args(args))
			}
			options.Stdin, options.Stdout, options.Stderr = os.Stdin, os.Stdout, os.Stderr
			status, err := lab.Run(options)
			if err == nil && status != 0 {
				err = lab.ExitStatus(status)
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false) // COMMAND's flags are its own, even without --
	cmd.Flags().StringArrayVar(&flags.hosts, "host", nil, "`NAME[=plain]` of a host, =plain for one without a daemon; repeat it (default a and b)")
	cmd.Flags().StringArrayVar(&flags.serve, "serve", nil, "`NAME=COMMAND`: a server, for sh -c, to run on a host; has to listen on a TCP port; repeat it")
	cmd.Flags().StringVar(&flags.pcap, "pcap", "", "capture each host's link as `DIR`/NAME.pcapng")
	cmd.Flags().BoolVar(&flags.json, "json", false, "the report as JSON, on the last line of standard error")
	cmd.Flags().BoolVarP(&flags.verbose, "verbose", "v", false, "show what daemons and servers write, on standard error")
	return cmd
}

// checkLab finds out here, where the user is who they are, what would fail inside,
// where everybody is root.
func checkLab(o lab.RunOptions) error {
	for _, h := range o.Hosts {
		if !h.Plain {
			return lab.CheckTUN()
		}
	}
	return nil
}

// enterLab runs the same command line inside, and passes on how it ended.
func enterLab(cmd *cobra.Command, args []string) error {
	status, err := lab.Enter(lab.Process{
		Args:   append([]string{"lab"}, args...),
		Stdin:  cmd.InOrStdin(),
		Stdout: cmd.OutOrStdout(),
		Stderr: cmd.ErrOrStderr(),
	})
	if err == nil && status != 0 {
		err = lab.ExitStatus(status)
	}
	return err
}

// args is the command line that parses into the same flags and command.
func (f *labFlags) args(command []string) []string {
	var args []string
	for _, h := range f.hosts {
		args = append(args, "--host="+h)
	}
	for _, s := range f.serve {
		args = append(args, "--serve="+s)
	}
	if f.pcap != "" {
		args = append(args, "--pcap="+f.pcap)
	}
	args = append(args, fmt.Sprintf("--json=%t", f.json), fmt.Sprintf("--verbose=%t", f.verbose), "--")
	return append(args, command...)
}

// parse checks what can be checked without making anything.
func (f *labFlags) parse(command []string) (lab.RunOptions, error) {
	o := lab.RunOptions{Command: command, JSON: f.json, Verbose: f.verbose, Options: lab.Options{Pcap: f.pcap}}
	names := make(map[string]bool)
	for _, arg := range f.hosts {
		name, kind, given := strings.Cut(arg, "=")
		if !lab.ValidName(name) {
			return o, fmt.Errorf("lab: --host %s: a host's name is 1 to 12 lower-case letters, digits and inner hyphens", arg)
		}
		if given && kind != "plain" {
			return o, fmt.Errorf("lab: --host %s: after = there can only be plain", arg)
		}
		if names[name] {
			return o, fmt.Errorf("lab: --host %s: there is one of that name already", arg)
		}
		names[name] = true
		o.Hosts = append(o.Hosts, lab.HostOptions{Name: name, Plain: given})
	}
	// A lab has two hosts. What is not named is a or b, and a comes first.
	for _, name := range []string{"a", "b"} {
		if len(o.Hosts) < 2 && !names[name] {
			names[name] = true
			at := len(o.Hosts)
			if name == "a" {
				at = 0
			}
			o.Hosts = append(o.Hosts[:at:at], append([]lab.HostOptions{{Name: name}}, o.Hosts[at:]...)...)
		}
	}
	if len(o.Hosts) > lab.MaxHosts {
		return o, fmt.Errorf("lab: %d hosts; %d are possible", len(o.Hosts), lab.MaxHosts)
	}
	for _, arg := range f.serve {
		name, server, given := strings.Cut(arg, "=")
		if !given || strings.TrimSpace(server) == "" {
			return o, fmt.Errorf("lab: --serve %s: want NAME=COMMAND", arg)
		}
		if !names[name] {
			return o, fmt.Errorf("lab: --serve %s: there is no host %q", arg, name)
		}
		o.Services = append(o.Services, lab.Service{Host: name, Command: server})
	}
	return o, nil
}
