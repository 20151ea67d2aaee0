package tcp

// Half of this package is generated and not in the repository. If the compiler
// stops at the next line, make that half: `make`, or `go generate ./stack/patch`.
//
// It is a type in the first file, because the compiler looks at types first and
// gives up after ten errors.
type _ [missing_generated_files__run_make__or__go_generate_stack_patch]struct{}
