package build

import (
	"context"
	"os"

	"build/executor"
	"build/internal/usernet"
)

// networkPrivate is the value of --network that BuildKit does not have: what is outside of this machine can be reached, and
// nothing of the machine itself. The others are its own: default, host and none.
const networkPrivate = "private"

// allowNetwork refuses to a RUN what the build as a whole was denied. Without a --network of the build the caller's is what
// every step has, and there is nothing to refuse; with one, RUN --network=host is BuildKit's entitlement network.host.
func (s *session) allowNetwork(ofStep string) error {
	confined := s.opts.Network == "none" || s.opts.Network == networkPrivate
	if ofStep == "host" && confined && !s.opts.AllowHostNet {
		return &UsageError{
			Msg:  "RUN --network=host is not allowed in a build with --network=" + s.opts.Network,
			Hint: "allow it with --allow network.host",
		}
	}
	return nil
}

// setNetwork gives a step its network, on the side of the build process.
func setNetwork(spec *executor.Spec, network string) {
	switch network {
	case "none":
		spec.Network = executor.NetworkNone
	case networkPrivate:
		spec.Network = executor.NetworkPrivate
		spec.Resolv = usernet.ResolvConf(spec.Resolv)
	}
}

// joinNetwork prepares, in the holder, what serves the network of a private step. The context it returns ends with the step's
// network; leave ends the network.
func joinNetwork(ctx context.Context, spec *executor.Spec, log *os.File) (_ context.Context, leave func(), err error) {
	if spec.Network != executor.NetworkPrivate {
		return ctx, func() {}, nil
	}
	if spec.Interface, err = usernet.NewInterface(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var gateway *usernet.Gateway
	spec.Attach = func(packets *os.File) (err error) {
		if gateway, err = usernet.Start(packets, log); err != nil {
			return err
		}
		go func() {
			<-gateway.Done()
			cancel(gateway.Err()) // of no effect on a step that is over
		}()
		return nil
	}
	return ctx, func() {
		if gateway != nil {
			gateway.Close()
		}
		cancel(nil)
	}, nil
}
