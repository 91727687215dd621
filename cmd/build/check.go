package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"build/internal/build"
)

// This file is --check and --call: questions about a Dockerfile, answered on standard output.

// call is what --call asks for.
type call struct {
	build.Inspection
	ignoreStatus bool // violations do not change the exit code
}

var callMethods = []string{"build", build.CallCheck, build.CallOutline, build.CallTargets, build.CallDescribe}

// inspection gives --check and --call their meaning; nil is an ordinary build.
func (f *buildFlags) inspection() (*call, error) {
	c, err := parseCall(f.call)
	if err != nil {
		return nil, err
	}
	switch {
	case f.check && c.Call == "":
		c.Call = build.CallCheck
	case f.check && c.Call != build.CallCheck:
		return nil, usagef("--check and --call=%s ask for different things", c.Call)
	}
	if c.Call == "" || c.Call == "build" {
		return nil, nil
	}
	return c, nil
}

// parseCall reads METHOD[,format=FORMAT][,ignorestatus[=BOOL]].
func parseCall(text string) (*call, error) {
	c := &call{Inspection: build.Inspection{Version: readVersion().Version}}
	if text == "" {
		return c, nil
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return nil, usagef("invalid --call=%s: %v", text, err)
	}
	for _, field := range fields {
		key, value, hasValue := strings.Cut(strings.TrimSpace(field), "=")
		switch {
		case key == "format" && hasValue:
			c.Format = value
		case key == "ignorestatus":
			c.ignoreStatus = true
			if hasValue {
				if c.ignoreStatus, err = strconv.ParseBool(value); err != nil {
					return nil, usagef("invalid --call=%s: ignorestatus is true or false", text)
				}
			}
		case hasValue || c.Call != "":
			return nil, usagef("invalid --call=%s: %q is neither format= nor ignorestatus", text, field)
		case key == "lint": // what BuildKit calls it
			c.Call = build.CallCheck
		default:
			c.Call = key
		}
	}
	return c, c.validate(text)
}

func (c *call) validate(text string) error {
	if !slices.Contains(callMethods, c.Call) {
		hint := "the choices are " + strings.Join(callMethods, ", ")
		if near, ok := nearest(c.Call, callMethods); ok {
			hint = fmt.Sprintf("did you mean --call=%s?", near)
		}
		return &build.UsageError{Msg: fmt.Sprintf("invalid --call=%s: there is no method %q", text, c.Call), Hint: hint}
	}
	formats := []string{"", build.FormatText, build.FormatJSON}
	if c.Call == build.CallCheck {
		formats = append(formats, build.FormatSARIF)
	}
	if !slices.Contains(formats, c.Format) {
		hint := fmt.Sprintf("%s has the formats %s", c.Call, strings.Join(formats[1:], ", "))
		return &build.UsageError{Msg: fmt.Sprintf("invalid --call=%s: there is no format %q", text, c.Format), Hint: hint}
	}
	return nil
}

// inspect answers on standard output, when the display is gone. Violations end with the exit code of mistakes in the Dockerfile,
// unless the status is to be ignored; a Dockerfile that cannot be built ends with the error a build would end with.
func (a *app) inspect(ctx context.Context, o build.Options, c *call, closeDisplay func() error) error {
	report, err := build.Inspect(ctx, o, c.Inspection)
	if cerr := closeDisplay(); err == nil && cerr != nil && !errors.Is(cerr, os.ErrClosed) {
		err = fmt.Errorf("show progress: %w", cerr)
	}
	if err != nil {
		return err
	}
	if o.MetadataFile != "" {
		if err := report.WriteMetadata(o.MetadataFile); err != nil {
			return err
		}
	}
	if err := report.Print(a.stdout); err != nil {
		return err
	}
	if err := report.Failure(); err != nil {
		return err
	}
	if report.Violations() > 0 && !c.ignoreStatus {
		return &exitError{build.ExitUsage}
	}
	return nil
}
