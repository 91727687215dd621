package Calc;
use strict;

sub evaluate {
    my @t = $_[0] =~ /(\d+|[-+*])/g;
    my $term = sub {
        my $v = shift @t;
        while (@t && $t[0] eq '*') { shift @t; $v *= shift @t }
        return $v;
    };
    my $v = $term->();
    while (@t) { my $op = shift @t; my $w = $term->(); $v = $op eq '+' ? $v + $w : $v - $w }
    return $v;
}
1;
