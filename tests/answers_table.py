"""Pairs of answers, reference first, with the verdict that each must get: hand-written."""

MATRIX = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"
COLUMN = r"\begin{pmatrix}1\\2\end{pmatrix}"
SAME = {
    r"\frac{1}{2}": ["1/2", "0.5", ".5", "0.50", r"\dfrac{1}{2}", r"\tfrac12", r"\frac 1 2", r"\frac{2}{4}", "50%",
        "$1/2$"],
    r"-\frac{1}{2}": ["-1/2", "-0.5", r"\frac{-1}{2}", r"\frac{1}{-2}"],
    "5/2": [r"2\frac{1}{2}", "2 1/2", "2.5", r"\boxed{5/2}", r"\(\frac{5}{2}\)", r"\[ 2.5 \]"],
    "1/3": ["0.333333", r"33.3333\%"],
    "12": ["12.0", "12.", "+12", "012", r"3\times 4", "3*4", r"144^{1/2}", "x = 12", "x=3+9=12", "3+9=12", r"1200\%",
        " 12\n"],
    r"25\%": ["25%", "25 percent", "0.25", r"\frac14", "25"],
    "5": ["5 cm", r"5\text{ cm}", r"5\,\mathrm{cm}^2", r"5 \text{ apples}", r"\$5.00", "$5", r"5\text{ m}^{2}"],
    r"90^\circ": ["90", r"90^{\circ}", r"90\text{ degrees}"],
    "1234567": ["1,234,567", "1 234 567", r"1\,234\,567", "1{,}234{,}567", r"1,\!234,\!567", "1234567.0"],
    "1,234.5": ["1234.5", r"\$1,234.50"],
    "1000": ["1e3", "10^3", "10**3", r"1.0\times10^{3}"],
    r"2\sqrt{2}": [r"\sqrt{8}", "2sqrt(2)", r"\sqrt8", r"\frac{4}{\sqrt{2}}", "2.8284271"],
    r"2\pi": ["2pi", "2*pi", r"\pi\cdot2", "6.283185"],
    "x^2+2x+1": ["(x+1)^2", "1+2x+x^2", "x^{2} + 2x + 1", "y = x^2+2x+1"],
    "y=2x+1": ["2x+1=y", "2x-y+1=0", "2x+1"],
    "x>2": ["2<x", r"(2,\infty)", r"x \in (2,\infty)"],
    r"\{1,2\}": [r"\{2,1\}", "1,2", "2, 1", "1 and 2", r"1 \text{ or } 2", r"\left\{1,2\right\}", r"\{1,2,2\}",
        "x=1,x=2"],
    r"\pm 2": ["2,-2", r"\{-2,2\}", r"x = \pm 2"],
    "(1,2)": [r"\left(1, 2\right)", "( 1 , 2.0 )", "1,2", r"x\in(1,2)"],
    "(3,1,2)": [r"\left(3, 1, \frac{4}{2}\right)", "3,1,2"],
    "[0,1)": [r"\left[0, 1\right)", r"[0, \frac{2}{2})", r"x \in [0,1)"],
    r"(-\infty,2]": [r"\left(-\infty, 2\right]", "(-infinity,2]"],
    r"(1,2)\cup(3,4)": [r"(3,4) \cup (1,2)"],
    r"\emptyset": [r"\{\}"],
    r"\text{Monday}": ["Monday", "monday", r"\text{ Monday }", r"\mathrm{Monday}", r"\textbf{Monday}"],
    r"\text{no solution}": ["No solution", "no  solution"],
    r"\text{(B)}": ["B", "(B)", r"\textbf{(B)}"],
    "1+2i": ["2i+1", r"1 + \frac{4}{2}i", "1 + 2 i"],
    r"\infty": ["infinity", r"+\infty"],
    "101_2": ["101_{2}", "5_{10}", "12_3"],
    MATRIX: [r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", r"\begin{pmatrix}1&2\\\frac{6}{2}&4.0\end{pmatrix}"],
}  # fmt: skip
DIFFERENT = {
    "12": [
        "12 or 13", r"12 \text{ or } 13", "12, 13", "12;13", "12 and 13", "12 13", "1  2", r"1\;\, 2", "12\n13",
        r"12 \quad 13", "12/13", "12-13", "12 dogs", r"12 \text{ cm}, \frac{1}{2}", r"12\text{ plus } 6\text{ cm}",
        r"12 \text{(or 13)}", r"12\text{ million}", "13 = 12", "x = 13 = 12", "12 = 13", "x < 12", r"x \ne 12",
        "12}{13", r"5 \boxed{12}", r"\boxed{12} \boxed{13}", "$12$ or $13$", "(12", "{12", "the answer is 12",
        "It is 12", "12.0001", "", " ", "(1,2)", "1,2", "120%", r"\frac{12}{}",
    ],
    "13": ["12 or 13", "12, 13", r"12\text{ cm}, 13\text{ cm}", "x=12, y=13", r"12 \\ 13", r"\pm 13", "13x", "-13",
        "13!"],
    "25": ["12 13", "{25", "52", "5^{2}i", "(25, 25, 26)"],
    "988": ["0 988", "9 88"],
    "1.2": ["1,2", "12", "1.20001", "(1,2)"],
    "1234": ["1,23,4", "12,34", "(1,234)", r"\{1,234\}", "1, 234", "1.234", "1 2 3 4"],
    r"\frac{1}{2}": [r"\frac{1}{3}", "2", "1,2", "0.501", "0.49", r"\frac{1}{2}, \frac{1}{3}", "5%"],
    "1/3": ["0.33", "0.3334", "33%"],
    "0.0000001": ["0.0000002", "0", "10^{-8}"],
    r"\pi": ["3.14", "22/7", "p", r"\pi^2"],
    "x^2-1": ["x^2+1", "(x-1)^2", "x^2", "y^2-1"],
    "x=1": ["y=1", "x^2=1", "x=1, y=2", "x=2"],
    "x^2+y^2=1": ["x^2+y^2=4", "x^2-y^2=1"],
    "x>2": [r"x\ge 2", "x<2", "x>3", r"[2,\infty)", "(2, 5)"],
    r"\{1,2\}": [r"\{1,2,3\}", r"\{1\}", r"\{1,3\}", "1", "12"],
    "(1,2)": ["[1,2]", "(1,2]", "[1,2)", "(2,1)", "2,1", "12", "(1,2,3)", "1", "2"],
    "(3,1,2)": ["(1,2,3)", "(3,1)", "1,2,3"],
    "[0,1)": ["[0,1]", "(0,1)", "(0,1]", "[0,2)", r"[0,1) \cup (2,3)"],
    r"(-\infty,2)": [r"(-\infty,2]", r"(\infty,2)", "(-2,2)"],
    r"\text{Monday}": [r"\text{Tuesday}", "Mon", "dynamo", r"\text{Monday or Tuesday}",
        r"\text{Monday}, \text{Tuesday}"],
    "east": ["seat", "west", "E"],
    r"\text{Yes}": ["No", r"\text{no}", "yes and no"],
    r"\text{(B)}": ["C", "(A)", "A, B", r"\text{(B) or (C)}"],
    "1+2i": ["1-2i", "2+i", "3", "1+2"],
    r"\infty": [r"-\infty", "8", "oo"],
    "101_2": ["101_3", "110_2", "101_1"],
    MATRIX: [r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "(1,2,3,4)"],
    COLUMN: [r"\begin{pmatrix}2\\1\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"],
}  # fmt: skip
TAKEN_FOR_EQUAL = {
    r"5\text{ cm}": [r"5\text{ m}", "5 kg"], "x^2": ["X^2"], "f'(x)": ["f(x)"], "ab": ["ba"], "no": ["on"],
    "101_2": ["101"], "(1,2)": [r"\{1,2\}"], r"\{1,2\}": ["(1,2)", "(2,1)"], "[2,1]": ["(2,1)"], "x=x+1": ["y=y+2"],
    "50": [r"50\%"], "6": [r"6 \text{ or more}"],
    "12": [r"12 \approx 13", r"x \approx 12", r"12 \ldots", "5 + ( = 4 = 12"],
}  # fmt: skip
NOT_SHOWN_EQUAL = {
    r"(-\infty,2]": [r"x\le 2"], "(1,2)": ["1<x<2"], COLUMN: ["(1,2)"], r"\emptyset": [r"\varnothing"],
    "-1": ["i^2", r"e^{i\pi}"], "2i": [r"\sqrt{-4}", "(1+i)^2"], r"\sin 30^\circ": ["1/2"],
    r"\frac{\pi}{2}": [r"90^\circ"], "1/3": [r"0.\overline{3}"], "0.5": ["0,5"], "18": ["18 dollars", "18€"],
    "1": ["0.9999999"], r"\text{red and blue}": ["blue and red"],
}  # fmt: skip


def pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(gold, answer) for gold, answers in table.items() for answer in answers]


VERDICTS = dict.fromkeys([*pairs(SAME), *pairs(TAKEN_FOR_EQUAL)], True)
VERDICTS |= dict.fromkeys([*pairs(DIFFERENT), *pairs(NOT_SHOWN_EQUAL)], False)
